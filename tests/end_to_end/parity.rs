//! Rows as trained and rows as served are the same numbers, bit for bit.
//!
//! One side is the offline code over the day's tables; the other is the stages of a request over
//! the published bundle's files. Nothing but the schema and the filling code is shared.

use std::sync::Arc;
use std::time::Duration;

use shortlist::bundle::{Bundle, files};
use shortlist::features::Plan;
use shortlist::forest::Matrix;
use shortlist::offline::as_of::{AsOf, Layout};
use shortlist::offline::examples::{Group, columns_of};
use shortlist::offline::load::Loaded;
use shortlist::offline::{aggregates, as_of};
use shortlist::pipeline::{
    self, Call, Context, Deadline, Inputs, Scratch, Serving, Settings, Timings,
};

use crate::support::{World, world};

/// The day's tables as the offline code reads them.
struct Offline {
    loaded: Loaded,
    as_of: AsOf,
    layout: Layout,
}

fn offline(world: &World, time_ms: i64, bundle: &Bundle) -> Offline {
    let config = world.config();
    let loaded = Loaded::open(&world.work().join("collect"), &config.offline.signals).unwrap();
    let day = aggregates::day_dir(&world.work().join("features"), time_ms);
    let inputs = &config.offline.towers.inputs;
    let layout = Layout::new(&bundle.schema, inputs, &loaded, &day).unwrap();
    let as_of = layout.read(&day, time_ms, &loaded).unwrap();
    Offline { loaded, as_of, layout }
}

#[test]
fn served_rows_equal_training_rows_bit_for_bit() {
    let world = world();
    let config = world.config();
    let dir = world.bundle_dir();
    let bundle = Bundle::open(&dir, true, &config.index).unwrap();
    let as_of_ms = bundle.manifest.as_of_ms;
    let time_ms = as_of_ms + 9 * 3_600_000 + 123;
    let offline = offline(world, as_of_ms, &bundle);
    assert!(bundle.schema.len() >= 100, "{} features", bundle.schema.len());
    assert_eq!(offline.layout.dictionaries, bundle.dictionaries);
    let plan = Plan::new(&bundle.schema, &offline.as_of.users, &offline.as_of.items).unwrap();
    let settings = Settings {
        pipeline: config.pipeline.clone(),
        rules: config.rules.clone(),
        regions: config.regions.clone(),
    };
    let serving = Arc::new(Serving::new(1, bundle, Arc::new(settings)).unwrap());
    let bundle = &serving.bundle;
    let mut free = Box::new(Scratch::new(&serving));
    let item_only = bundle.plan.item_only();
    assert!(item_only.iter().filter(|&&item_only| item_only).count() >= 10);
    let mut present = 0;
    for user in (0..offline.loaded.data.users.len() as u32).step_by(7) {
        let past = as_of::history(&offline.loaded, user, time_ms.min(as_of_ms));
        let (history, history_times_ms): (Vec<_>, Vec<_>) = past.into_iter().unzip();
        let id = &offline.loaded.data.users[user as usize];
        let served = bundle.users.find(id);
        assert_eq!(served.history(), (&history[..], &history_times_ms[..]), "history of {id}");
        let context = vec![0.0; bundle.schema.context_names().len()];
        let inputs = Inputs {
            num_items: 20,
            candidates: config.pipeline.candidates,
            user: bundle.users.row_of(id),
            time_ms,
            context: context.clone(),
            history,
            history_times_ms,
            ..Inputs::default()
        };
        let call = Call {
            serving: serving.clone(),
            inputs: Arc::new(inputs),
            deadline: Deadline::after(Duration::from_secs(60)),
            cached: None,
            degraded: Vec::new(),
            timings: Timings::default(),
        };
        let mut cx = Context::new(call, free);
        let answer = pipeline::run(&mut cx);
        let served_constants = cx.ahead.as_ref().unwrap().constants.clone();
        let scratch = &cx.scratch;
        assert!(!answer.items.is_empty() && answer.degraded.is_empty());
        let group = Group {
            user,
            time_ms,
            context,
            candidates: scratch.candidates.clone(),
            labels: vec![0.0; scratch.candidates.len()],
            missed: 0,
            weights: Vec::new(),
        };
        // The offline history of a later moment would hold what the test day brought.
        let asked = Group { time_ms: as_of_ms, ..group.clone() };
        let (_, at_midnight) = columns_of(&offline.loaded, &plan, &offline.as_of, &asked);
        assert_eq!(at_midnight.len(), item_only.len() * scratch.candidates.len());
        if offline.loaded.data.before(user, time_ms).len()
            != offline.loaded.data.before(user, as_of_ms).len()
        {
            free = cx.into_scratch();
            continue;
        }
        let (constants, columns) = columns_of(&offline.loaded, &plan, &offline.as_of, &group);
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&constants), bits(&served_constants), "constants of user {id}");
        let rows = group.candidates.len();
        for (at, feature) in bundle.schema.features()[constants.len()..].iter().enumerate() {
            let span = |at: usize| at * rows..(at + 1) * rows;
            // Columns of the item alone are made when a bundle opens, the others in the request.
            let mut served = vec![0.0; rows];
            if item_only[at] {
                for (value, candidate) in served.chunks_exact_mut(1).zip(&group.candidates) {
                    let (items, row) = (bundle.items.columns(), candidate.item.row());
                    bundle.plan.item_column(at, items, row, value);
                }
            } else {
                let place = item_only[..at].iter().filter(|&&item_only| !item_only).count();
                served.copy_from_slice(&scratch.columns[span(place)]);
            }
            let name = &feature.name;
            assert_eq!(bits(&columns[span(at)]), bits(&served), "feature {name} of user {id}");
        }
        let mut raw = vec![0.0; rows];
        bundle.ranker.score(&Matrix::new(&constants, &columns, rows), &mut raw);
        assert_eq!(raw, scratch.raw, "the scores of user {id} are those of the training rows");
        present += columns.iter().filter(|v| !v.is_nan()).count();
        free = cx.into_scratch();
    }
    assert!(present > 100_000, "only {present} values were compared that are there");
    assert!(dir.join(files::RANKER).exists());
}
