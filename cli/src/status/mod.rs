//! `podspan status`.

mod ask;
mod lanes;
mod page;

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use podspan_wire::status::Status;

use crate::args::{self, Output};
use page::View;

/// Exit code: the agent reports problems and `--exit-code` was given.
const PROBLEMS: u8 = 1;
/// Exit code: the agent could not be asked.
const NOT_ASKED: u8 = 3;

/// Asks and prints, once or until interrupted.
pub(crate) fn run(args: &args::Status) -> Result<ExitCode> {
    let screen = std::io::stdout().is_terminal();
    let Some(seconds) = args.watch else {
        return match ask::status(&args.socket) {
            Ok(status) => {
                crate::print(&written(args, &status, screen)?)?;
                let problems = args.exit_code && !status.problems.is_empty();
                Ok(if problems { ExitCode::from(PROBLEMS) } else { ExitCode::SUCCESS })
            }
            Err(error) => {
                eprintln!("error: {error:#}");
                Ok(ExitCode::from(NOT_ASKED))
            }
        };
    };
    loop {
        // An agent that restarts is what one watches for: its absence is shown, not fatal.
        match ask::status(&args.socket) {
            Ok(status) => {
                let text = written(args, &status, screen)?;
                let page = args.output == Output::Table;
                // Home, then clear what is left below: less flicker than clearing first.
                crate::print(&match (page, screen) {
                    (true, true) => format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n")),
                    (true, false) => text + "\n",
                    (false, _) => text,
                })?;
            }
            Err(error) => eprintln!("error: {error:#}"),
        }
        thread::sleep(Duration::from_secs(u64::from(seconds)));
    }
}

/// `podspan gateway drain` and `undrain`.
pub(crate) fn drain(command: &args::Gateway) -> Result<ExitCode> {
    let (socket, drain) = match command {
        args::Gateway::Drain(args) => (&args.socket, true),
        args::Gateway::Undrain(args) => (&args.socket, false),
    };
    if let Err(error) = ask::drain(socket, drain) {
        eprintln!("error: {error:#}");
        return Ok(ExitCode::from(NOT_ASKED));
    }
    crate::print(match drain {
        true => "this gateway drains: peers take the cluster's other gateways where there are any\n",
        false => "this gateway is used again\n",
    })?;
    Ok(ExitCode::SUCCESS)
}

fn written(args: &args::Status, status: &Status, screen: bool) -> Result<String> {
    Ok(match (args.output, args.watch) {
        (Output::Json, None) => serde_json::to_string_pretty(status)? + "\n",
        // A document a line: a stream that programs can read.
        (Output::Json, Some(_)) => serde_json::to_string(status)? + "\n",
        (Output::Table, _) => {
            let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
            let width = terminal_size::terminal_size().map(|(width, _)| usize::from(width.0));
            let view = View {
                colour: screen && !no_colour && !dumb,
                width: width.filter(|&width| screen && width > 0),
                all: args.all,
            };
            page::write(status, &view)
        }
    })
}
