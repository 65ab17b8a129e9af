//! Ctrl-C. A run may end at any point, so nothing has to be tidied up: only said.

use std::process;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::Options;
use crate::report::tell;

/// Ends the program on SIGINT, SIGTERM or SIGHUP with 128 and the signal's number, and tells how to go
/// on.
pub(crate) fn on_signals(options: &Options) {
    let to = options.to.display();
    let text = if options.check {
        "stopped; nothing was written".to_owned()
    } else if options.rollback {
        "stopped; the same command goes on with the rollback".to_owned()
    } else if options.reverse {
        format!("stopped; the source is unchanged, and the same command begins {to} anew")
    } else {
        format!("stopped; the source is unchanged, and the same command goes on with {to}")
    };
    // Without a handler the signals end the program all the same.
    let Ok(mut signals) = Signals::new([SIGINT, SIGTERM, SIGHUP]) else {
        return;
    };
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            tell(&format!("\n{text}"));
            process::exit(128 + signal);
        }
    });
}
