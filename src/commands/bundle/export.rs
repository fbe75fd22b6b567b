//! `shortlist bundle export`: the towers of a bundle for other programs, as ONNX.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::json;

use crate::bundle::Bundle;
use crate::config::Config;
use crate::types::ItemIdx;

/// Arguments of `shortlist bundle export`.
#[derive(clap::Args)]
pub struct Args {
    /// Where `user_tower.onnx`, `item_tower.onnx`, `item_ids.txt` (the graphs' rows) and `inputs.json` (the
    /// columns behind `codes` and `dense`, and the codes) are written.
    #[arg(long)]
    out: PathBuf,
    /// A bundle's directory; without one, the bundle that serves.
    #[arg(long)]
    bundle: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: &Args, config: &Config) -> Result<()> {
    let dir = match &args.bundle {
        Some(dir) => dir.clone(),
        None => super::serving(config)?,
    };
    let bundle = Bundle::open(&dir, true, &config.index)?;
    let foreign =
        || format!("{}: its vectors were made elsewhere: there is no tower", dir.display());
    let user = bundle.towers.user_onnx().with_context(foreign)?;
    let item = bundle.towers.item_onnx().with_context(foreign)?;
    let out = &args.out;
    std::fs::create_dir_all(out).with_context(|| format!("create {}", out.display()))?;
    let write = |name: &str, bytes: &[u8]| {
        let path = out.join(name);
        std::fs::write(&path, bytes).with_context(|| format!("write {}", path.display()))
    };
    write("user_tower.onnx", &user)?;
    write("item_tower.onnx", &item)?;
    let view = bundle.items.view();
    let ids = (0..bundle.items.len() as u32).map(|row| format!("{}\n", view.id(ItemIdx(row))));
    write("item_ids.txt", ids.collect::<String>().as_bytes())?;
    let inputs = &bundle.manifest.tower_inputs;
    let codes = |names: &[String]| -> Vec<_> {
        let known = |name: &String| {
            let codes = bundle.dictionaries.get(name);
            let codes = codes.map(|codes| (0..codes.len() as u32).filter_map(|at| codes.value(at)));
            json!({"column": name, "codes": codes.map(|codes| codes.collect::<Vec<_>>())})
        };
        names.iter().map(known).collect()
    };
    let described = json!({
        "bundle_version": bundle.manifest.bundle_version,
        "user": {"codes": codes(&inputs.user_codes), "dense": inputs.user_dense},
        "item": {"codes": codes(&inputs.item_codes), "dense": inputs.item_dense},
    });
    write("inputs.json", &serde_json::to_vec_pretty(&described)?)?;
    println!("{}", out.display());
    Ok(())
}
