//! The event log: what users saw and did, as Parquet by day.
