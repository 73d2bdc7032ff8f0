//! `changeover run`

use std::process;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::exit::{Exit, Failure};
use super::options::{ConfigFile, block_on};
use crate::config::Config;
use crate::{control, pipeline, telemetry};

/// The daemon: copies, then follows the source until it is stopped. Start it again at any time, it goes on where it was
#[derive(Debug, Args)]
#[command(
    after_help = "SIGTERM and SIGINT end it after a drain, a second one at once; both are safe.\n\nExample:\n  changeover run --config shop.toml"
)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigFile,
}

pub(super) fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let config = arguments.config.load()?;
    telemetry::init_logs(config.log.format, config.log.level);
    #[cfg(debug_assertions)]
    if let Some(directory) = crate::config::points_directory() {
        telemetry::arm_points(directory);
    }
    block_on(serve(config))
}

async fn serve(config: Config) -> Result<Exit, Failure> {
    let listener = control::bind(config.control.listen).await?;
    let token = config.control.token.clone();
    let metrics = telemetry::metrics::install_recorder(&config.migration);
    let (handle, daemon) = pipeline::daemon(config);
    let options = control::Options { handle, metrics, token };
    let (stop, answered) = (CancellationToken::new(), CancellationToken::new());
    let working = async {
        let ended = Box::pin(daemon.run(stop.clone())).await;
        answered.cancel();
        ended
    };
    let (ended, served, ()) = tokio::join!(
        working,
        control::serve(listener, options, answered.clone()),
        stop_on_signals(stop.clone(), answered.clone()),
    );
    ended?;
    if let Err(failure) = served {
        warn!(error = telemetry::chain(&failure), "control ended badly");
    }
    info!("stopped");
    Ok(Exit::Done)
}

/// The first signal asks for a drain, the second ends the process: nothing unsettled was ever confirmed.
async fn stop_on_signals(stop: CancellationToken, ended: CancellationToken) {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        error!("signals cannot be caught: only `kill -9` will end this");
        return;
    };
    loop {
        tokio::select! { biased;
            () = ended.cancelled() => return,
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if stop.is_cancelled() {
            warn!("asked to stop again: ending now");
            process::exit(Exit::Failed as i32);
        }
        info!("asked to stop: draining");
        stop.cancel();
    }
}
