//! `shortlist features feast`: a bundle's user columns as Feast's Python definitions.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

use anyhow::Result;

use crate::bundle::Bundle;
use crate::config::Config;

/// Arguments of `shortlist features feast`.
#[derive(clap::Args)]
pub struct Args {
    /// A bundle's directory; without one, the bundle that the registry says serves.
    #[arg(long)]
    bundle: Option<PathBuf>,
    /// Seconds after which a row is too old; 0 never is.
    #[arg(long, default_value_t = 0)]
    ttl_s: u64,
}

/// Runs the command: a feature view a table, and what `[store.feast]` needs to read them.
pub fn run(args: &Args, config: &Config) -> Result<()> {
    let dir = match &args.bundle {
        Some(dir) => dir.clone(),
        None => crate::commands::bundle::serving(config)?,
    };
    let bundle = Bundle::open(&dir, false, &config.index)?;
    let columns = bundle.users.columns().iter();
    let columns = columns.map(|name| (name.as_str(), bundle.dictionaries.get(name).is_some()));
    let feast = &config.store.feast;
    let join_key = (feast.join_key.as_str(), format!("{:?}", feast.join_key_type).to_uppercase());
    print!("{}", definitions(columns, (join_key.0, &join_key.1), args.ttl_s)?);
    Ok(())
}

/// The text; of each column its name and whether it holds strings, of the join key its name and
/// type.
fn definitions<'a>(
    columns: impl Iterator<Item = (&'a str, bool)>,
    (key, key_type): (&str, &str),
    ttl_s: u64,
) -> Result<String> {
    let mut tables: BTreeMap<&str, Vec<(&str, bool)>> = BTreeMap::new();
    for (name, is_text) in columns {
        let (table, column) = name.split_once('.').unwrap_or(("users", name));
        tables.entry(table).or_default().push((column, is_text));
    }
    let (mut views, mut mapping) = (String::new(), String::new());
    for (table, columns) in &tables {
        writeln!(views, "\n{table} = FeatureView(\n    name={table:?},\n    entities=[{key}],")?;
        writeln!(views, "    ttl=timedelta(seconds={ttl_s}),\n    schema=[")?;
        for (column, is_text) in columns {
            let of_type = if *is_text { "String" } else { "Float32" };
            writeln!(views, "        Field(name={column:?}, dtype={of_type}),")?;
        }
        let source = format!("path=\"{table}.parquet\", timestamp_field=\"event_timestamp\"");
        writeln!(views, "    ],\n    source=FileSource({source}),\n)")?;
        let pairs = columns.iter().map(|(column, _)| format!("{column:?} = \"{table}.{column}\""));
        let pairs = pairs.collect::<Vec<_>>().join(", ");
        writeln!(
            mapping,
            "#     {{ name = {table:?}, ttl_s = {ttl_s}, features = {{ {pairs} }} }},"
        )?;
    }
    Ok(format!(
        "\"\"\"What `shortlist features feast` knows of users, for Feast; point the sources at your tables.\"\"\"

from datetime import timedelta

from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.types import Float32, String

{key} = Entity(name={key:?}, join_keys=[{key:?}], value_type=ValueType.{key_type})
{views}
# For the configuration of Shortlist:
# [store.feast]
# views = [
{mapping}# ]
"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_a_view_and_the_mapping_leads_back() {
        let columns = [("users.region", true), ("user_stats.ctr_7d", false), ("users.age", false)];
        let text = definitions(columns.into_iter(), ("user_id", "STRING"), 60).unwrap();
        for part in [
            "user_id = Entity(name=\"user_id\", join_keys=[\"user_id\"], value_type=ValueType.STRING)",
            "users = FeatureView(\n    name=\"users\",\n    entities=[user_id],\n    ttl=timedelta(seconds=60),",
            "        Field(name=\"region\", dtype=String),\n        Field(name=\"age\", dtype=Float32),\n",
            "source=FileSource(path=\"user_stats.parquet\", timestamp_field=\"event_timestamp\"),",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        let mapping = text.lines().skip_while(|line| *line != "# [store.feast]");
        let mapping: String = mapping.map(|line| format!("{}\n", &line[1..])).collect();
        let mapping: toml::Table = mapping.parse().unwrap();
        let view = &mapping["store"]["feast"]["views"][1];
        assert_eq!(view["features"]["region"].as_str(), Some("users.region"));
        assert_eq!((view["name"].as_str(), view["ttl_s"].as_integer()), (Some("users"), Some(60)));
    }
}
