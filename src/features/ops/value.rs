//! One value in, one value out.

/// `ln(1 + x)`; missing below or at -1.
#[inline]
pub fn log1p(x: f32) -> f32 {
    if x > -1.0 { x.ln_1p() } else { f32::NAN }
}

/// `x` within `[min, max]`; missing stays missing.
#[inline]
pub fn clip(x: f32, min: f32, max: f32) -> f32 {
    if x < min {
        min
    } else if x > max {
        max
    } else {
        x
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_stays_missing() {
        assert!(log1p(f32::NAN).is_nan() && log1p(-1.0).is_nan());
        assert!(clip(f32::NAN, 0.0, 1.0).is_nan());
        assert_eq!(
            (clip(-3.0, 0.0, 1.0), clip(3.0, 0.0, 1.0), clip(0.5, 0.0, 1.0)),
            (0.0, 1.0, 0.5)
        );
        assert_eq!(log1p(0.0), 0.0);
    }
}
