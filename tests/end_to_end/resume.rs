//! The day goes on where it stopped, and gives the same bundle.

use crate::support::world;

#[test]
fn a_finished_day_is_not_done_again_and_publishes_the_same_bundle() {
    let world = world();
    let before = world.bundle_dir();
    let log = world.shortlist_log(&["pipeline", "run", "--override", "a world for tests"]);
    assert_eq!(world.bundle_dir(), before, "the same parts are the same bundle");
    for step in ["collect", "towers", "ranker", "evaluate"] {
        assert!(log.contains(&format!("{step}: done before, kept")), "{step} ran again:\n{log}");
    }
}
