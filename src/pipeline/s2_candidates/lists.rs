//! What is the same for every request of a bundle: sorted lists of items by region.
//!
//! Made when a bundle opens, from the statistics that it holds, and bounded. They hold what was in
//! stock then; what has changed since is seen when a request reads them.

use super::repeats::Repeats;
use crate::bundle::Bundle;
use crate::monitor::Source;
use crate::pipeline::Config;
use crate::pipeline::serving::Remark;
use crate::store::items::Items;
use crate::types::ItemIdx;

/// Lists of one kind: everywhere, then by region.
#[derive(Debug, Default)]
struct ByRegion(Vec<Vec<ItemIdx>>);

/// The lists of a bundle, and what each source may give.
#[derive(Debug)]
pub struct Lists {
    repeats: Repeats,
    trending: ByRegion,
    popular: ByRegion,
    fresh: ByRegion,
    /// By [`Source`]; 0 is off.
    quotas: [usize; Source::ALL.len()],
    candidates: usize,
}

impl Lists {
    /// Reads the statistics of all items. Items with one of the `blocked` label
    /// bits are in no list. A source whose column is missing is off, and remarked upon.
    pub fn new(
        pipeline: &Config,
        bundle: &Bundle,
        blocked: u64,
        remarks: &mut Vec<Remark>,
    ) -> Self {
        let (config, items) = (&pipeline.sources, &bundle.items);
        let (candidates, as_of_ms) = (pipeline.candidates, bundle.manifest.as_of_ms);
        let mut quotas = config.quotas();
        let users = &bundle.users;
        let repeats = &config.repeats;
        let columns = items.columns();
        let repeats = Repeats::new(&repeats.map, &bundle.schema, users.map_names(), columns);
        let repeats = repeats.unwrap_or_else(|why| {
            remarks.push(Remark::NoFavourites { why });
            Repeats::default()
        });
        let mut column = |source: Source, name: &str| {
            let values = columns.copy_column(name);
            if values.is_none() && quotas[source as usize] > 0 {
                quotas[source as usize] = 0;
                remarks.push(Remark::NoColumn { of: source.name(), column: name.to_owned() });
            }
            values
        };
        let wanted = column(Source::Popular, &config.popular.column);
        let rise = column(Source::Trending, &config.trending.column);
        let users = column(Source::Trending, &config.trending.floor_column);
        let shown = column(Source::Fresh, &config.fresh.column);
        if wanted.is_none() {
            remarks.push(Remark::NoPopularity { column: config.popular.column.clone() });
        }
        let (rows_max, view) = (config.list_rows_max, items.view());
        let list = |score: &dyn Fn(ItemIdx) -> Option<f32>| {
            let open = |item| blocked == 0 || view.labels(item) & blocked == 0;
            ByRegion::new(items, rows_max, |item| score(item).filter(|_| open(item)))
        };
        // The fallback of the whole stage, so it has every item that there is room for.
        let popular =
            list(&|item| Some(wanted.as_ref().map_or(0.0, |wanted| wanted[item.row()].max(0.0))));
        let trending = match (rise, users) {
            (Some(rise), Some(users)) if quotas[Source::Trending as usize] > 0 => list(&|item| {
                let enough = users[item.row()] >= config.trending.floor;
                Some(rise[item.row()]).filter(|rise| enough && !rise.is_nan())
            }),
            _ => ByRegion::default(),
        };
        let fresh = match shown {
            Some(shown) if quotas[Source::Fresh as usize] > 0 => list(&|item| {
                let age_days = view.age_days(item, as_of_ms)?.max(0.0);
                // No count is a count of zero: nobody has seen the item.
                let seen_enough = shown[item.row()] > config.fresh.impressions_max;
                (age_days <= config.fresh.age_max_days && !seen_enough).then_some(-age_days as f32)
            }),
            _ => ByRegion::default(),
        };
        Self { repeats, trending, popular, fresh, quotas, candidates }
    }

    /// How many candidates a source may give to a request that wants `candidates` in all: its
    /// quota, or the same share of fewer.
    pub fn quota(&self, source: Source, candidates: usize) -> usize {
        let quota = self.quotas[source as usize];
        quota.min(quota * candidates / self.candidates)
    }

    /// Whether any source beside retrieval is on.
    pub fn any(&self) -> bool {
        self.any_beside(&[])
    }

    /// Whether any source beside retrieval and the named ones is on.
    pub fn any_beside(&self, names: &[String]) -> bool {
        let named = |source: &Source| names.iter().any(|name| name == source.name());
        Source::ALL.iter().any(|source| self.quotas[*source as usize] > 0 && !named(source))
    }

    /// How the user's repeats are found.
    pub fn repeats(&self) -> &Repeats {
        &self.repeats
    }

    /// The list of a source, best first, in a region by position or everywhere.
    pub fn of(&self, source: Source, region: Option<usize>) -> &[ItemIdx] {
        match source {
            Source::Trending => self.trending.of(region),
            Source::Popular => self.popular.of(region),
            Source::Fresh => self.fresh.of(region),
            Source::Ann | Source::Repeats | Source::Similar => &[],
        }
    }
}

impl ByRegion {
    fn new(items: &Items, rows_max: usize, score: impl Fn(ItemIdx) -> Option<f32>) -> Self {
        let regions = (0..items.regions().len()).map(Some);
        let list = |region| {
            let eligible = items.eligible(region);
            best(eligible.iter().filter_map(|item| Some((score(item)?, item))), rows_max)
        };
        Self(std::iter::once(None).chain(regions).map(list).collect())
    }

    fn of(&self, region: Option<usize>) -> &[ItemIdx] {
        self.0.get(region.map_or(0, |at| at + 1)).map_or(&[], Vec::as_slice)
    }
}

/// The `max` items of the highest scores, best first, ties by item; memory for twice as many.
fn best(scored: impl Iterator<Item = (f32, ItemIdx)>, max: usize) -> Vec<ItemIdx> {
    let order = |a: &(f32, ItemIdx), b: &(f32, ItemIdx)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
    let mut kept: Vec<(f32, ItemIdx)> = Vec::new();
    let mut least = f32::NEG_INFINITY;
    for (score, item) in scored {
        if score < least {
            continue;
        }
        kept.push((score, item));
        if kept.len() == 2 * max {
            kept.select_nth_unstable_by(max - 1, order);
            kept.truncate(max);
            least = kept[max - 1].0;
        }
    }
    kept.sort_unstable_by(order);
    kept.truncate(max);
    kept.into_iter().map(|(_, item)| item).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_best_are_those_of_a_sort(
            scores in proptest::collection::vec(-3i8..3, 0..60),
            max in 1usize..20,
        ) {
            let scored = || scores.iter().map(|&s| f32::from(s)).zip((0..).map(ItemIdx));
            let mut sorted: Vec<_> = scored().collect();
            sorted.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            let expected: Vec<_> = sorted.into_iter().take(max).map(|(_, item)| item).collect();
            prop_assert_eq!(best(scored(), max), expected);
        }
    }
}
