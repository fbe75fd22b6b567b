//! The candidates of requests of the past: what retrieval and the user's repeats would have given them, so
//! that the ranker learns from what it will rank. The other sources' lists are of the bundle's moment.

use super::blend::{Buffers, Pick};
use super::config::Config;
use super::repeats::{Repeats, Unusable};
use crate::features::{Candidate, ItemColumns, Schema, UserRow, UserTable};
use crate::index::{self, Filter, Hit, Index};
use crate::monitor::Source;
use crate::types::ItemIdx;

/// What of the configuration decides the candidates of the past.
#[derive(Clone, Copy, Debug)]
pub struct PastConfig<'a> {
    /// How many candidates a request has.
    pub candidates: usize,
    pub sources: &'a Config,
}

impl PastConfig<'_> {
    /// The sources that bring candidates.
    pub fn taught(&self) -> Vec<Source> {
        let repeats = (self.sources.repeats.quota > 0).then_some(Source::Repeats);
        [Source::Ann].into_iter().chain(repeats).collect()
    }

    /// How the repeats of users with these tables are found.
    ///
    /// # Errors
    /// When the configured map has no favourites.
    pub fn repeats(
        &self,
        schema: &Schema,
        users: &UserTable,
        items: &ItemColumns,
    ) -> Result<Repeats, Unusable> {
        Repeats::new(&self.sources.repeats.map, schema, users.map_names(), items)
    }
}

/// Buffers of one thread.
#[derive(Default)]
pub struct Past {
    search: index::Scratch,
    hits: Vec<Hit>,
    blend: Buffers,
    favourites: Vec<(f32, ItemIdx)>,
    sources: Vec<Source>,
}

impl Past {
    /// The candidates of a user whose vector and history (oldest first) are given.
    pub fn candidates(
        &mut self,
        config: PastConfig,
        (index, repeats): (&dyn Index, &Repeats),
        vector: &[f32],
        user: UserRow,
        history: &[ItemIdx],
    ) -> Vec<Candidate> {
        let Self { search, hits, blend, favourites, sources } = self;
        let filter = Filter { allowed: None, excluded: &[] };
        index.search(vector, config.candidates, &filter, search, hits);
        blend.picks.clear();
        let own = repeats.of(user, history, favourites).take(config.sources.repeats.quota);
        let pick = |item| Pick { item, source: Source::Repeats, retrieved: false };
        blend.picks.extend(own.map(pick));
        let mut candidates = Vec::with_capacity(config.candidates);
        sources.clear();
        let out = (&mut candidates, sources);
        blend.join(index, vector, search, hits, config.candidates, out);
        candidates
    }

    /// Similarities of these items.
    pub fn similarities(
        &mut self,
        index: &dyn Index,
        vector: &[f32],
        items: &[ItemIdx],
        out: &mut Vec<f32>,
    ) {
        index.scores(vector, items, &mut self.search, out);
    }
}
