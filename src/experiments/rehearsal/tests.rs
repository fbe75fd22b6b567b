use super::*;

fn settings() -> Settings {
    Settings {
        percents: vec![5, 25, 50, 100],
        stage_min_minutes: 60.0,
        stage_requests_min: 1000,
        shadow_min_minutes: 0.0,
        shadow_requests_min: 0,
        false_rollback_max: 0.05,
        false_advance_max: 0.05,
        smallest_effect: 0.05,
        ctr_margins: vec![0.1, 0.03, 0.03],
        revenue_margins: vec![0.0; 3],
        errors_margin: 0.002,
        p99_ratio: 1.25,
        p99_slack_ms: 5.0,
        stable_requests_min: 1000,
        psi_max: 0.25,
        expected_min: 100.0,
    }
}

/// A shop whose traffic decides within a simulated day or two.
fn world() -> World {
    World {
        users: 200_000,
        requests_per_day: 2_000_000.0,
        impressions_per_request: 6,
        ctr: 0.05,
        ctr_spread: 0.5,
        activity_spread: 1.0,
        sales_per_click: 0.02,
        sale_value: 30.0,
        look_minutes: 60.0,
        days_max: 20.0,
    }
}

fn runs(effect: f64, n: u64) -> Vec<Outcome> {
    (0..n).map(|seed| rehearse(&world(), &settings(), effect, seed)).collect()
}

fn share(runs: &[Outcome], is: impl Fn(&Outcome) -> bool) -> f64 {
    runs.iter().filter(|run| is(run)).count() as f64 / runs.len() as f64
}

#[test]
fn worse_goes_back_before_half_of_the_users_better_goes_to_all_and_equal_is_left_alone() {
    let worse = runs(-0.05, 10);
    let early = |run: &Outcome| run.ended == Ended::RolledBack && run.percent < 50;
    assert!(share(&worse, early) >= 0.9, "{worse:?}");
    assert!(worse.iter().all(|run| run.ended != Ended::RolledBack || !run.reason.is_empty()));
    let better = runs(0.05, 10);
    assert!(share(&better, |run| run.ended == Ended::Promoted) >= 0.9, "{better:?}");
    let equal = runs(0.0, 20);
    assert!(share(&equal, |run| run.ended == Ended::RolledBack) <= 0.1, "{equal:?}");
    let all: Vec<Outcome> = [worse, better, equal].concat();
    assert!(share(&all, |run| run.held_always) >= 0.9, "at every look");
    let once: Vec<bool> = all.iter().filter_map(|run| run.held_once).flatten().collect();
    let held = once.iter().filter(|held| **held).count() as f64 / once.len() as f64;
    // 80 intervals at 95 %: three standard deviations below.
    assert!(held >= 0.87, "{held} of {}", once.len());
}

#[test]
fn a_rehearsal_is_decided_by_its_seed() {
    let run = || rehearse(&world(), &settings(), -0.2, 3);
    assert_eq!(run(), run());
    assert_eq!(run().ended, Ended::RolledBack);
}
