//! A suggested schema fits the tables that it was suggested for.

use std::process::Command;

use shortlist::features::{Plan, Schema, Scope};
use shortlist::offline::aggregates;
use shortlist::offline::as_of::Layout;
use shortlist::offline::load::Loaded;

use crate::support::{SHORTLIST, world};

#[test]
fn every_column_of_a_suggested_schema_is_there() {
    let world = world();
    let output =
        Command::new(SHORTLIST).args(["features", "suggest"]).arg(world.data()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let schema = Schema::parse(&String::from_utf8(output.stdout).unwrap()).unwrap();
    let has = |name: &str, scope: Scope| {
        schema.features().iter().any(|f| f.name == name && f.scope == scope)
    };
    assert!(has("item_rating_is", Scope::Item) && has("user_region_is", Scope::User));
    assert!(has("user_brand_share", Scope::Cross) && !has("item_title_is", Scope::Item));

    let config = world.config();
    let loaded = Loaded::open(&world.work().join("collect"), &config.offline.signals).unwrap();
    let bundle = shortlist::bundle::Manifest::open(&world.bundle_dir(), false).unwrap();
    let day = aggregates::day_dir(&world.work().join("features"), bundle.as_of_ms);
    let layout = Layout::new(&schema, &config.offline.towers.inputs, &loaded, &day).unwrap();
    let as_of = layout.read(&day, bundle.as_of_ms, &loaded).unwrap();
    let plan = Plan::new(&schema, &as_of.users, &as_of.items).unwrap();
    assert_eq!(plan.constant_count() + plan.column_count(), schema.len());
}
