use super::*;
use crate::experiments::assignment::GROUPS;
use crate::experiments::counts::{Drift, Groups};

fn settings() -> Settings {
    Settings {
        percents: vec![5, 25, 50, 100],
        stage_min_minutes: 60.0,
        stage_requests_min: 1000,
        shadow_min_minutes: 10.0,
        shadow_requests_min: 100,
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

fn at(stage: Stage) -> State {
    State { stage, since_ms: 0, paused: false, states: [3, 4] }
}

/// An arm whose groups are all alike but for a little noise.
fn arm(requests: u64, ctr: f64) -> ArmCounts {
    let each = requests as f64 / GROUPS as f64;
    let wobble = |at: usize| if at.is_multiple_of(2) { 1.02 } else { 0.98 };
    let clicks = (0..GROUPS).map(|at| each * 10.0 * ctr * wobble(at)).collect();
    let mut arm = ArmCounts {
        requests,
        groups: Groups {
            answers: vec![each; GROUPS],
            impressions: vec![each * 10.0; GROUPS],
            clicks,
            value: vec![],
        },
        ..ArmCounts::default()
    };
    (0..requests.min(5000)).for_each(|n| arm.latency.record(1000 + n % 100));
    arm
}

fn counts(stable: ArmCounts, challenger: ArmCounts) -> Counts {
    Counts { stages: vec![StageCounts { state: 4, arms: [stable, challenger] }] }
}

const HOURS_2: i64 = 2 * 3_600_000;

#[test]
fn a_good_challenger_goes_through_every_stage_and_ends() {
    let settings = settings();
    let counts = counts(arm(1_000_000, 0.05), arm(200_000, 0.053));
    let mut stage = settings.first();
    let mut path = vec![stage.percent()];
    while let Decision::Advance(percent) = decide(&at(stage), &counts, HOURS_2, &settings).decision
    {
        stage = Stage::Percent(percent);
        path.push(percent);
    }
    assert_eq!(path, [0, 5, 25, 50, 100]);
}

#[test]
fn time_and_sample_and_an_open_question_hold_it() {
    let settings = settings();
    let here = at(Stage::Percent(5));
    let reason = |counts: &Counts, now_ms: i64, state: &State| {
        let verdict = decide(state, counts, now_ms, &settings);
        assert_eq!(verdict.decision, Decision::Hold, "{verdict:?}");
        verdict.reason
    };
    let good = counts(arm(1_000_000, 0.05), arm(200_000, 0.053));
    assert_eq!(reason(&good, 60_000, &here), "1 of at least 60 minutes at 5 %");
    let few = counts(arm(1_000_000, 0.05), arm(999, 0.053));
    assert!(reason(&few, HOURS_2, &here).starts_with("999 of at least 1000 requests"));
    let open = counts(arm(100_000, 0.05), arm(20_000, 0.05));
    let here_25 = at(Stage::Percent(25));
    assert!(reason(&open, HOURS_2, &here_25).contains("a loss of 3.0 % is not ruled out"));
    assert_eq!(reason(&good, HOURS_2, &State { paused: true, ..here }), "paused");
    let none = Counts::default();
    assert!(reason(&none, HOURS_2, &here).starts_with("0 of at least"));
}

#[test]
fn each_guardrail_rolls_back_and_says_so() {
    let settings = settings();
    let good = || arm(200_000, 0.05);
    let breach = |challenger: ArmCounts, stage: Stage, word: &str| {
        let counts = counts(arm(1_000_000, 0.05), challenger);
        // At once, before any minimum, and when paused too.
        let state = State { paused: true, ..at(stage) };
        let verdict = decide(&state, &counts, 1, &settings);
        assert_eq!(verdict.decision, Decision::RollBack, "{word}: {verdict:?}");
        assert!(verdict.reason.contains(word), "{}", verdict.reason);
    };
    breach(arm(200_000, 0.046), Stage::Percent(5), "CTR -8.0 %");
    breach(ArmCounts { errors: 2000, ..good() }, Stage::Percent(5), "1.000 % of 200000");
    breach(ArmCounts { requests: 4, errors: 4, ..ArmCounts::default() }, Stage::Shadow, "failed");
    let drift = Some(Drift { feature: "items.price".into(), psi: 0.4 });
    breach(ArmCounts { drift, ..good() }, Stage::Percent(25), "`items.price` 0.400");
    let mut slow = good();
    (0..500).for_each(|_| slow.latency.record(50_000));
    breach(slow, Stage::Shadow, "p99");
    let mut poor = good();
    poor.groups.value = (0..GROUPS).map(|at| 0.25 + 0.1 * (at % 2) as f64).collect();
    poor.value_squares = 600.0;
    let mut rich = arm(1_000_000, 0.05);
    rich.groups.value = (0..GROUPS).map(|at| 4.9 + 0.2 * (at % 2) as f64).collect();
    rich.value_squares = 10_000.0;
    let verdict = decide(&at(Stage::Percent(5)), &counts(rich, poor), 1, &settings);
    assert_eq!(verdict.decision, Decision::RollBack, "{verdict:?}");
    assert!(verdict.reason.starts_with("revenue per request -7"), "{}", verdict.reason);
}

#[test]
fn what_another_rollout_counted_does_not_matter() {
    let settings = settings();
    let mut all = counts(arm(1_000_000, 0.05), arm(200_000, 0.053));
    let old = StageCounts { state: 2, arms: [arm(9_000_000, 0.5), arm(9_000_000, 0.1)] };
    all.stages.insert(0, old);
    let verdict = decide(&at(Stage::Percent(5)), &all, HOURS_2, &settings);
    assert_eq!(verdict.decision, Decision::Advance(25), "{verdict:?}");
}

#[test]
fn settings_that_decide_nothing_are_refused_by_name() {
    assert_eq!(settings().check(), Ok(()));
    for percents in [vec![], vec![5, 25], vec![0, 100], vec![50, 25, 100]] {
        assert!(Settings { percents, ..settings() }.check().is_err());
    }
    assert!(Settings { ctr_margins: vec![0.1], ..settings() }.check().is_err());
    let error = Settings { false_rollback_max: 0.6, ..settings() }.check().unwrap_err();
    assert!(error.to_string().contains("rollout.guard.false_rollback_max = 0.6"));
}
