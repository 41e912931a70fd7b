//! The command `lacuna`; everything is in `framework/cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    lacuna_cli::main()
}
