//! `offline.towers.refit`: what serves has learnt from the newest days, what the ranker learns from has not.

use std::fs;

use crate::support::{files, world};

#[test]
fn towers_that_serve_learn_the_newest_days_and_the_rankers_rows_do_not_know_them() {
    let (world, dir) = (world(), tempfile::tempdir().unwrap());
    let path = |name: &str| format!("\"{}\"", dir.path().join(name).display());
    let settings = [
        ("offline.towers.refit", "true"),
        ("offline.work_dir", &path("work")),
        ("registry.url", &path("models")),
    ];
    world.succeeds(&settings, &["pipeline", "run", "--override", "a world for tests"]);
    let made = |name: &str| fs::read(dir.path().join("work").join(name)).unwrap();
    let without = |name: &str| fs::read(world.work().join(name)).unwrap();
    for same in ["towers/towers.bin", "embed/ranker.bin", "ranker/ranker.txt"] {
        assert!(made(same) == without(same), "{same} is of the first pair");
    }
    for newer in ["embed/test.bin", "embed/publish.bin", "index/publish.bin"] {
        assert!(made(newer) != without(newer), "{newer} is of the second pair");
    }
    let bundle = files(&dir.path().join("models"), "manifest.json");
    let serves = fs::read(bundle[0].with_file_name("towers.bin")).unwrap();
    assert!(serves == made("towers/refit.bin"), "the second pair serves");
    assert!(serves != made("towers/towers.bin"));
}
