//! Who is in which arm: a hash of the user and the experiment's salt, so that every replica and
//! every later request of the user agrees without anybody remembering anything.

use serde::{Deserialize, Serialize};

/// Users fall into so many slots; a share is a number of them from slot 0 on, so a growing share
/// keeps everybody whom it had.
pub const SLOTS: u32 = 10_000;
/// Users fall into so many groups, independently of the slot; variances are taken over groups.
/// With 512 the standard error itself is known to 3 %.
pub const GROUPS: usize = 512;

/// One of the two that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arm {
    /// What serves already.
    Stable,
    /// What might replace it.
    Challenger,
}

impl Arm {
    /// Both, in the order of their numbers.
    pub const ALL: [Arm; 2] = [Arm::Stable, Arm::Challenger];

    /// Its name in answers, logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Arm::Stable => "stable",
            Arm::Challenger => "challenger",
        }
    }
}

/// Where a user falls in one experiment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draw {
    /// 0 to [`SLOTS`] - 1.
    pub slot: u16,
    /// 0 to [`GROUPS`] - 1.
    pub group: u16,
}

/// Draws for a user; another salt draws independently.
pub fn draw(salt: &str, user: &str) -> Draw {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(salt.len() as u64).to_le_bytes());
    hasher.update(salt.as_bytes()).update(user.as_bytes());
    let hash = hasher.finalize();
    let part = |at: usize| {
        let bytes = hash.as_bytes()[at..at + 8].try_into().expect("eight of 32 bytes");
        u64::from_le_bytes(bytes)
    };
    let slot = (part(0) % u64::from(SLOTS)) as u16;
    Draw { slot, group: (part(8) % GROUPS as u64) as u16 }
}

/// The share of users that see the challenger.
#[derive(Clone, Debug, PartialEq)]
pub struct Share {
    pub salt: String,
    /// 0 to 100.
    pub percent: u8,
}

impl Share {
    /// The arm of a user, and where the user's counts belong.
    pub fn arm(&self, user: &str) -> (Arm, Draw) {
        let draw = draw(&self.salt, user);
        (self.arm_of(draw), draw)
    }

    /// The arm of a draw.
    pub fn arm_of(&self, draw: Draw) -> Arm {
        let slots = u32::from(self.percent.min(100)) * (SLOTS / 100);
        if u32::from(draw.slot) < slots { Arm::Challenger } else { Arm::Stable }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users() -> impl Iterator<Item = String> {
        (0..100_000).map(|n| format!("user-{n}"))
    }

    fn share(salt: &str, percent: u8) -> Share {
        Share { salt: salt.into(), percent }
    }

    #[test]
    fn a_share_has_its_size_and_a_larger_one_keeps_whom_it_had() {
        let mut before: Vec<String> = Vec::new();
        for percent in [0, 5, 25, 50, 100] {
            let share = share("salt", percent);
            let chosen: Vec<String> =
                users().filter(|user| share.arm(user).0 == Arm::Challenger).collect();
            let expected = 1000.0 * f64::from(percent);
            // Four standard deviations of a binomial count.
            let slack = 4.0 * (expected * (1.0 - f64::from(percent) / 100.0)).sqrt() + 0.5;
            assert!((chosen.len() as f64 - expected).abs() <= slack, "{percent}: {}", chosen.len());
            assert!(before.iter().all(|user| share.arm(user).0 == Arm::Challenger));
            before = chosen;
        }
    }

    #[test]
    fn experiments_with_other_salts_and_groups_are_independent() {
        let (a, b) = (share("a", 50), share("b", 50));
        let mut table = [[0.0_f64; 2]; 2];
        let mut groups = vec![[0.0_f64; 2]; GROUPS];
        for user in users() {
            let ((x, draw), (y, _)) = (a.arm(&user), b.arm(&user));
            table[x as usize][y as usize] += 1.0;
            groups[draw.group as usize][x as usize] += 1.0;
        }
        let chi: f64 = table.iter().flatten().map(|n| (n - 25_000.0).powi(2) / 25_000.0).sum();
        // 99.99 % quantile of chi squared with 3 degrees of freedom.
        assert!(chi < 21.1, "salts: {chi}, {table:?}");
        let expected = 100_000.0 / (2.0 * GROUPS as f64);
        let chi: f64 = groups.iter().flatten().map(|n| (n - expected).powi(2) / expected).sum();
        // 1023 degrees of freedom: mean 1023, standard deviation 45.
        assert!(chi < 1023.0 + 4.0 * 45.0, "groups and arms: {chi}");
    }

    #[test]
    fn salt_and_user_do_not_run_into_each_other() {
        assert_ne!(draw("ab", "c"), draw("a", "bc"));
    }
}
