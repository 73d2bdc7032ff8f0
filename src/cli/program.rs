//! The subcommands, and the way into each.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use super::{
    abort, check, complete, copy, cutover, demo, init, inspect, pause, resume, resync, run, status, throttle, verify,
};

/// Moves a live PostgreSQL database to another cluster without downtime, and publishes the same change stream to Kafka.
///
/// The usual way:
///
///   changeover init --source postgres://mover@blue/shop --target postgres://mover@green/shop -o changeover.toml
///   changeover check
///   changeover run                 the daemon: copies, then follows; leave it running
///   changeover status --watch
///   changeover verify
///   changeover cutover --dry-run
///   changeover cutover
///   changeover complete
///
/// Exit codes: 0 done · 1 refused, or a difference found · 2 wrong usage or configuration · 3 failed while running.
#[derive(Debug, Parser)]
#[command(name = "changeover", version, verbatim_doc_comment, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::Arguments),
    Init(init::Arguments),
    Inspect(inspect::Arguments),
    Check(check::Arguments),
    Copy(copy::Arguments),
    Run(run::Arguments),
    Status(status::Arguments),
    Verify(verify::Arguments),
    Resync(resync::Arguments),
    Pause(pause::Arguments),
    Resume(resume::Arguments),
    Throttle(throttle::Arguments),
    Cutover(cutover::Arguments),
    Complete(complete::Arguments),
    Abort(abort::Arguments),
}

/// The whole program.
pub fn main() -> ExitCode {
    let ended = match Arguments::parse().command {
        Command::Demo(arguments) => demo::run(arguments),
        Command::Init(arguments) => init::run(arguments),
        Command::Inspect(arguments) => inspect::run(arguments),
        Command::Check(arguments) => check::run(arguments),
        Command::Copy(arguments) => copy::run(arguments),
        Command::Run(arguments) => run::run(arguments),
        Command::Status(arguments) => status::run(arguments),
        Command::Verify(arguments) => verify::run(arguments),
        Command::Resync(arguments) => resync::run(arguments),
        Command::Pause(arguments) => pause::run(arguments),
        Command::Resume(arguments) => resume::run(arguments),
        Command::Throttle(arguments) => throttle::run(arguments),
        Command::Cutover(arguments) => cutover::run(arguments),
        Command::Complete(arguments) => complete::run(arguments),
        Command::Abort(arguments) => abort::run(arguments),
    };
    ended.unwrap_or_else(|failure| failure.print()).into()
}
