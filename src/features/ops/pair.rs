//! Two values in, one value out; missing when either is missing.

/// `a / b`; missing when `b` is zero.
#[inline]
pub fn ratio(a: f32, b: f32) -> f32 {
    if b == 0.0 { f32::NAN } else { a / b }
}

/// 1 when equal, 0 when not.
#[inline]
pub fn equals(a: f32, b: f32) -> f32 {
    if a.is_nan() || b.is_nan() {
        f32::NAN
    } else if a == b {
        1.0
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_and_zero_give_missing() {
        assert!(ratio(1.0, 0.0).is_nan() && ratio(f32::NAN, 1.0).is_nan());
        assert!(equals(f32::NAN, f32::NAN).is_nan());
        assert_eq!((ratio(3.0, 2.0), equals(2.0, 2.0), equals(2.0, 3.0)), (1.5, 1.0, 0.0));
    }
}
