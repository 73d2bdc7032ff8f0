//! The program: see `changeover::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    changeover::cli::main()
}
