//! Chance that follows from a request's id: the same request draws the same again.

/// FNV-1a, and a last mix so that all bits depend on all bytes.
pub fn hash(text: &str) -> u64 {
    let fold = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325, fold);
    (hash ^ (hash >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ (hash >> 32)
}

/// A number from 0 to below 1 that follows from an id and what it is drawn for (SplitMix64's last
/// step, Steele, Lea, Flood 2014).
pub fn draw(request_id: &str, purpose: u64) -> f64 {
    let mut bits = hash(request_id).wrapping_add(purpose.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((bits ^ (bits >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_even_differ_by_purpose_and_repeat() {
        let mut tenths = [[0usize; 10]; 10];
        for at in 0..20_000 {
            let id = format!("0199f3c2-{at:05}");
            let [a, b] = [1, 2].map(|purpose| draw(&id, purpose));
            assert_eq!(a, draw(&id, 1));
            tenths[(a * 10.0) as usize][(b * 10.0) as usize] += 1;
        }
        // 200 each; five standard deviations of that are 71.
        assert!(tenths.iter().flatten().all(|count| (129..271).contains(count)), "{tenths:?}");
    }
}
