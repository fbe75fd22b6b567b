//! Layers: parts of the path that settings alone decide, so that two experiments run at once.
//!
//! Each layer draws with a salt of its own, so the arms of one are spread evenly over those of the other and of a
//! bundle (Tang et al., Overlapping Experiment Infrastructure, KDD 2010). Towers, index and ranker
//! are no layers: they change as a whole bundle.

use serde::{Deserialize, Serialize};

/// A layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layer {
    /// What s5 does: section `[rules]`.
    Rules,
    /// Where candidates come from: section `[pipeline.sources]`.
    Blending,
}

impl Layer {
    /// All, in the order of their bits.
    pub const ALL: [Layer; 2] = [Layer::Rules, Layer::Blending];

    /// Its name in commands, answers and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Layer::Rules => "rules",
            Layer::Blending => "blending",
        }
    }

    /// The section of the configuration that it tries.
    pub const fn section(self) -> &'static str {
        match self {
            Layer::Rules => "rules",
            Layer::Blending => "pipeline.sources",
        }
    }

    /// The layer of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|layer| layer.name() == name)
    }
}

impl std::fmt::Display for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What is on trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    Bundle,
    Layer(Layer),
}
