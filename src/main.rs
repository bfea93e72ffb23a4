//! The `weir` binary: everything it does is in the library, so that tests and benches reach it.

use std::process::ExitCode;

fn main() -> ExitCode {
    weir::cli::run(std::env::args_os())
}
