//! What the ranker's validation days looked like, for the bundle to remember (`reference.json`): rows of
//! the kind that serving has, all candidates of a request or what was shown, scored by the new ranker.

use std::ops::Range;
use std::path::Path;

use anyhow::Result;
use rayon::prelude::*;

use super::examples::{self, Group, Horizon, Kind, Models, Source};
use super::workspace::write_atomically;
use crate::bundle::files;
use crate::drift::{Population, ROWS_PER_REQUEST, Reference, ReferenceBuilder, spread};
use crate::features::Plan;
use crate::forest::{Forest, Matrix};
use crate::types::DAY_MS;

/// At most so many requests, evenly spread over each day: with them a distance is known to .01.
const REQUESTS_MAX: usize = 2000;
/// How many of the best candidates count as shown, where nothing says what was.
const SHOWN: usize = 20;

/// Writes the reference of these days.
pub fn write(
    source: &Source,
    models: &Models,
    days_ms: &Range<i64>,
    ranker: &Forest,
    out: &Path,
) -> Result<()> {
    let reference = reference(source, models, days_ms, ranker)?;
    write_atomically(&out.join(files::REFERENCE), &serde_json::to_vec(&reference)?)
}

fn reference(
    source: &Source,
    models: &Models,
    days_ms: &Range<i64>,
    ranker: &Forest,
) -> Result<Reference> {
    let Source { loaded, impression, .. } = *source;
    let kind = Kind::of(loaded, impression, [days_ms.start, days_ms.end]);
    let population = match kind {
        Kind::Impressions => Population::Shown,
        Kind::Retrieval => Population::Candidates,
    };
    let features = models.schema.features().iter();
    let names = features.map(|feature| (feature.name.clone(), feature.is_category())).collect();
    let mut builder = ReferenceBuilder::new(population, names);
    let categories = match loaded.items.has("category") {
        true => loaded.items.strings("category")?,
        false => vec![None; loaded.data.items.len()],
    };
    let days: Vec<i64> = days_ms.clone().step_by(DAY_MS as usize).collect();
    let per_day = (REQUESTS_MAX / days.len().max(1)).max(1);
    for day_ms in days {
        let as_of = source.day(day_ms)?;
        let groups = examples::groups_of_day(source, models, &as_of, kind, Horizon::MOMENT)?;
        let step = groups.len().div_ceil(per_day).max(1);
        let groups: Vec<Group> = groups.into_iter().step_by(step).collect();
        let plan = Plan::new(models.schema, &as_of.users, &as_of.items)?;
        let rows = |group: &Group| {
            let (constants, columns) = examples::columns_of(loaded, &plan, &as_of, group);
            let n = group.candidates.len();
            let mut raw = vec![0.0; n];
            ranker.score(&Matrix::new(&constants, &columns, n), &mut raw);
            let mut values = Vec::new();
            for row in spread(n, ROWS_PER_REQUEST) {
                values.extend_from_slice(&constants);
                values.extend((0..plan.column_count()).map(|column| columns[column * n + row]));
            }
            let scores: Vec<f64> = spread(n, ROWS_PER_REQUEST).map(|row| raw[row]).collect();
            let mut best: Vec<usize> = (0..n).collect();
            if kind == Kind::Retrieval {
                best.sort_by(|&a, &b| raw[b].total_cmp(&raw[a]));
                best.truncate(SHOWN);
            }
            let shown: Vec<usize> =
                best.into_iter().map(|row| group.candidates[row].item.row()).collect();
            (values, scores, shown)
        };
        let filled: Vec<_> = groups.par_iter().map(rows).collect();
        for (values, scores, shown) in filled {
            builder.add(&values, &scores);
            builder.show(shown.iter().filter_map(|&item| categories[item].as_deref()));
        }
    }
    Ok(builder.build())
}
