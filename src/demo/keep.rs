//! `--keep`: everything goes on without us.

use std::path::PathBuf;

use super::stage::{Daemon, Stage};

/// Lets go of servers and daemon, and says how to look around and how to stop them.
pub(super) fn keep(stage: Stage, daemon: Daemon) -> Vec<String> {
    let mut lines = vec![
        "kept running; look around with".to_owned(),
        format!("  psql {}    (blue)", stage.blue_url()),
        format!("  psql {}    (green)", stage.green_url()),
        format!("  psql {}    (through the pooler)", stage.pooler.url(super::shop::DATABASE)),
        format!("  changeover status --config {}", daemon.config().display()),
        format!("  http://{}/", daemon.listen()),
        "stop and remove it with".to_owned(),
    ];
    let dirs = [daemon.keep(), stage.pooler.keep(), stage.blue.keep(), stage.green.keep()];
    lines.push(format!("  {}", stop_command(&dirs)));
    lines
}

/// Each directory holds the id of its process in the file `pid`.
fn stop_command(dirs: &[PathBuf]) -> String {
    let dirs: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    format!("for d in {}; do kill -QUIT $(cat $d/pid); sleep 1; rm -rf $d; done", dirs.join(" "))
}
