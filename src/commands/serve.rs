//! `shortlist serve`: everything is checked, then the port is bound, then the bundle is loaded.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;

use crate::bundle::{Bundle, ChangeLog, Registry};
use crate::config::Config;
use crate::events::{Archive, Log};
use crate::monitor::{self, Health};
use crate::pipeline::{Engine, ItemChanges, Parts, Settings, Steering};
use crate::server;
use crate::store::Users;

/// Arguments of `shortlist serve`.
#[derive(clap::Args)]
pub struct Args {
    /// A bundle's directory; without one, the bundle that the registry says serves.
    #[arg(long)]
    bundle: Option<PathBuf>,
    /// Overrides server.port; 0 lets the system choose.
    #[arg(long)]
    port: Option<u16>,
}

/// Serves until SIGTERM or SIGINT.
pub fn run(args: Args, mut config: Config) -> anyhow::Result<()> {
    if let Some(port) = args.port {
        config.server.port = port;
    }
    config.check()?;
    // A bundle that was named stays; one that the registry names is followed.
    let (dir, source) = match args.bundle {
        Some(dir) => (dir, None),
        None => {
            let source = server::Source {
                registry: Registry::open(&config.registry)?,
                poll: Duration::from_millis(config.registry.poll_interval_ms),
                verify: config.registry.verify,
                index: config.index.clone(),
                steering: Steering {
                    registry: Registry::open(&config.registry)?,
                    settings: config.rollout.guard.clone(),
                    process: format!(
                        "{}-{}",
                        config.events.replica_name(),
                        uuid::Uuid::now_v7().simple()
                    ),
                }
                .into(),
                counts_interval: Duration::from_millis(config.rollout.counts_interval_ms),
            };
            (super::bundle::serving(&config)?, Some(source))
        }
    };
    let exporter = monitor::install(&config.monitor)?;
    let health = std::sync::Arc::new(Health::new());
    let data_dir = &config.events.dir;
    std::fs::create_dir_all(data_dir)
        .with_context(|| format!("events.dir: create {}", data_dir.display()))?;
    let events = Log::durable(data_dir, &config.events, health.clone())?;
    let requests = Log::start(data_dir, &config.events, health.clone())?;
    // Ends after the logs, which leave their last files to it.
    let archive = (!config.events.archive.is_empty()).then(|| {
        let interval = Duration::from_millis(config.events.archive_interval_ms);
        Archive::start(data_dir, &config.events.archive, interval, health.clone())
    });
    let _archive = archive.transpose()?;
    let poll_items_ms = config.items.poll_ms;
    let parts = server::Parts {
        events,
        requests,
        health: health.clone(),
        exporter,
        source,
        poll_items_ms,
        rollout: config.rollout.clone(),
    };
    actix_web::rt::System::new().block_on(async move {
        let handle = tokio::runtime::Handle::current();
        let server_config = config.server.clone();
        let load = move || -> Result<Engine, Box<dyn std::error::Error + Send + Sync>> {
            let bundle = Bundle::open(&dir, config.registry.verify, &config.index)?;
            let registry = Registry::open(&config.registry)?;
            let item_changes = ItemChanges::new(ChangeLog::new(registry), config.items);
            let replayed = handle.block_on(item_changes.replay(&bundle))?;
            tracing::info!(replayed, "the items' change log is applied");
            let users = handle.block_on(Users::open(&config.store, health))?;
            Ok(Engine::start(Parts {
                bundle,
                users,
                item_changes,
                settings: Settings {
                    pipeline: config.pipeline,
                    rules: config.rules,
                    regions: config.regions,
                },
                executor: config.executor,
                shadow_every: config.rollout.shadow_every,
                drift: config.drift,
            })?)
        };
        server::run(&server_config, parts, load).await
    })?;
    Ok(())
}
