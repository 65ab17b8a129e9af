//! A machine whose processors are all taken.

use std::io;
use std::process::{Child, Command, Stdio};
use std::thread::available_parallelism;

use crate::cluster::leash;

/// Busy processes, two for each core, of ordinary priority; they end with this value.
pub struct Burn(Vec<Child>);

impl Burn {
    /// Starts them.
    pub fn start() -> io::Result<Self> {
        let mut busy = Self(Vec::new());
        for _ in 0..2 * available_parallelism()?.get() {
            let mut command = Command::new("sh");
            command.args(["-c", "while :; do :; done"]);
            busy.0.push(leash(command.stdin(Stdio::null())).spawn()?);
        }
        Ok(busy)
    }
}

impl Drop for Burn {
    fn drop(&mut self) {
        for child in &mut self.0 {
            if let Err(e) = child.kill().and_then(|()| child.wait().map(drop)) {
                eprintln!("cannot end process {}: {e}", child.id());
            }
        }
    }
}
