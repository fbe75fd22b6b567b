//! Every label that a metric can carry, as a closed set: a caller cannot invent a time series.

/// Declares an enum whose variants have a name each, in order.
macro_rules! labels {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $name {
            /// All values, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The value of the label.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }
        }
    };
}

labels! {
    /// The six stages of a request.
    Stage {
        S1UserEmbedding = "s1_user_embedding",
        S2Candidates = "s2_candidates",
        S3Features = "s3_features",
        S4Ranking = "s4_ranking",
        S5Rules = "s5_rules",
        S6Response = "s6_response",
    }
}

labels! {
    /// What stood in for something that failed or was missing. The name is also what the answer
    /// says under `degraded`.
    Fallback {
        /// The region or location asked for is unknown: the default region serves.
        UnknownRegion = "unknown_region",
        /// Ranking was too late, or a score was no number: the order of retrieval.
        RetrievalOrder = "retrieval_order",
        /// Requests waited too long: fewer candidates were retrieved.
        FewerCandidates = "fewer_candidates",
        /// Retrieval failed or was too late: what is most wanted in the region, in that order.
        PopularItems = "popular_items",
        /// A source of candidates beside retrieval failed or was too late.
        FewerSources = "fewer_sources",
        /// Redis did not answer, or answered with an error.
        UserStoreDown = "user_store_down",
        /// Redis did not answer: what was read of the user before.
        UserStateStale = "user_state_stale",
    }
}

labels! {
    /// What brought a candidate in. An item that several bring carries the first of these that is
    /// not `ann`.
    Source {
        /// Nearest to the user's vector.
        Ann = "ann",
        /// In the user's own history.
        Repeats = "repeats",
        /// Nearest to the newest item of the history.
        Similar = "similar",
        /// Rising in the region.
        Trending = "trending",
        /// Most wanted in the region.
        Popular = "popular",
        /// New and hardly shown: exploration.
        Fresh = "fresh",
    }
}

labels! {
    /// Why a source of candidates brought none.
    SourceLoss {
        /// Too little of the request's time was left.
        Late = "late",
        /// It panicked; the log has the cause.
        Failed = "failed",
    }
}

labels! {
    /// How a cache lookup ended.
    Hit {
        Hit = "hit",
        Miss = "miss",
        /// An entry was there, but of another history, or too old.
        Stale = "stale",
        /// An entry was there that says that the store behind does not know the user.
        Unknown = "unknown",
        /// An entry was there, but it was not readable.
        Malformed = "malformed",
        /// The store behind the cache failed or was too late.
        Error = "error",
        /// The store was not asked, because it has failed lately.
        Skipped = "skipped",
    }
}

labels! {
    /// Which cache.
    Cache {
        /// What this process has read of users lately.
        UserLocal = "user_local",
        /// Users in Redis: a read is one lookup, each damaged value in it one more.
        UserRedis = "user_redis",
        /// Embeddings, wherever they were found.
        Embedding = "embedding",
    }
}

labels! {
    /// Why a candidate did not reach the answer.
    Dropped {
        Duplicate = "duplicate",
        BlockedLabel = "blocked_label",
        RecentlyShown = "recently_shown",
        CategoryCap = "category_cap",
    }
}

labels! {
    /// Which log.
    Log {
        Events = "events",
        Requests = "requests",
    }
}

labels! {
    /// Why rows of a log were lost.
    Lost {
        QueueFull = "queue_full",
        WriteFailed = "write_failed",
        Stopped = "stopped",
    }
}

labels! {
    /// Why an executor refused a job.
    Refusal {
        QueueFull = "queue_full",
        Deadline = "deadline",
        Stopped = "stopped",
        Panicked = "panicked",
    }
}

labels! {
    /// How a request went that a challenger answered unseen.
    Tried {
        Sound = "sound",
        Failed = "failed",
    }
}

labels! {
    /// The HTTP routes.
    Route {
        Recommendations = "recommendations",
        Events = "events",
        Items = "items",
        Explain = "explain",
        Drift = "drift",
        Console = "console",
        Probe = "probe",
        Metrics = "metrics",
        Other = "other",
    }
}

/// The statuses that this server answers with; any other is counted as `other`.
pub const STATUSES: [(u16, &str); 15] = [
    (200, "200"),
    (202, "202"),
    (400, "400"),
    (401, "401"),
    (403, "403"),
    (404, "404"),
    (405, "405"),
    (408, "408"),
    (413, "413"),
    (415, "415"),
    (429, "429"),
    (500, "500"),
    (503, "503"),
    (507, "507"),
    (0, "other"),
];

/// The position of a status in [`STATUSES`].
pub fn status_at(status: u16) -> usize {
    STATUSES.iter().position(|&(code, _)| code == status).unwrap_or(STATUSES.len() - 1)
}
