//! The command line: one file a subcommand. Each reads its arguments, calls the room that does the work and prints what
//! came of it; nothing is decided here.

mod program;

mod exit;
mod options;
mod report;

mod demo;
mod init;
mod inspect;
mod check;
mod copy;
mod run;
mod status;
mod verify;
mod resync;
mod pause;
mod resume;
mod throttle;
mod cutover;
mod complete;
mod abort;

pub use program::main;
