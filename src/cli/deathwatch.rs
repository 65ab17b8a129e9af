//! The process `rmq-deathwatch`, a child of a group's broker that outlives it: it waits until the kernel
//! says that the broker's process is gone with all its threads, and then sends the others what proves
//! that ([`crate::raft::LastWill`]).
//!
//! A child and not a parent, so that all that operators know stays what it was: the broker's process id,
//! its exit code, who gets which signal, who starts it again. A pidfd tells a child as much as `wait` does
//! a parent. It holds nothing that the broker has opened but the pipe by which it gets the last will, and it is
//! in a session of its own: what ends the broker's process group leaves it. Where it is ended too, as by the
//! end of a container, there is no proof, and the lease is waited out.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{ExitCode, Stdio};
use std::sync::Arc;

use anyhow::{Context, ensure};
use bytes::{Buf, BufMut};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::retry_on_intr;
use rustix::process::{Pid, PidfdFlags, getppid, pidfd_open, setsid};
use rustix::thread::set_name;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::process::Command;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::raft::{LastWill, Letter, Tcp, deliver};

/// What it is called in lists of processes: not like the broker, which is found there by its name.
pub(super) const NAME: &str = "rmq-deathwatch";
/// Bytes of a last will, far more than a group of any size needs.
const MAX_WILL: usize = 1 << 20;

/// Starts it beside this process, and gives what passes last wills on to it. To be called on the runtime
/// of the broker.
///
/// # Errors
/// When there is no process to be had.
pub(super) fn start() -> io::Result<LastWill> {
    let mut child = Command::new("/proc/self/exe")
        .arg0(NAME)
        .args(["deathwatch", &std::process::id().to_string()])
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let mut pipe = child.stdin.take().expect("it was asked for");
    let (last, mut wills) = watch::channel(Vec::new());
    tokio::spawn(async move {
        loop {
            tokio::select! {
                ended = child.wait() => {
                    tracing::warn!(
                        ?ended,
                        "{NAME} has ended: if this broker crashes, the others wait for its lease"
                    );
                    return;
                }
                Ok(()) = wills.changed() => {}
            }
            let will = encode(&wills.borrow_and_update());
            // That it has ended is said above.
            pipe.write_all(&will).await.ok();
        }
    });
    Ok(Arc::new(move |will| drop(last.send_replace(will))))
}

/// What the process does beside the broker with this process id.
pub(super) fn run(broker: i32) -> anyhow::Result<ExitCode> {
    setsid().context("this is a broker's to start")?;
    set_name(c"rmq-deathwatch")?;
    let broker = Pid::from_raw(broker).context("no process has the id 0")?;
    let process = pidfd_open(broker, PidfdFlags::empty()).context("pidfd_open")?;
    // Only then is it the broker's, and not that of another process that has got its id since: a parent
    // that has ended is replaced by one that was there before.
    ensure!(getppid() == Some(broker), "the broker has ended");
    on_runtime(wait_and_tell(process))?
}

/// Does not wait for more than `work`: a name server of the network that is silent keeps a thread busy for
/// longer than a proof is worth sending.
fn on_runtime<T>(work: impl Future<Output = T>) -> io::Result<T> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(work);
    runtime.shutdown_background();
    Ok(done)
}

async fn wait_and_tell(broker: OwnedFd) -> anyhow::Result<ExitCode> {
    // Whoever stops a service asks all its processes. This one stops when the broker has.
    let _deaf = [
        SignalKind::terminate(),
        SignalKind::interrupt(),
        SignalKind::hangup(),
    ]
    .map(signal);
    let mut pipe = pipe::Receiver::from_owned_fd(io::stdin().as_fd().try_clone_to_owned()?)?;
    let mut last = Vec::new();
    // The system closes the pipe while the broker ends.
    while let Some(will) = next_will(&mut pipe).await? {
        last = will;
    }
    let mut process = [PollFd::new(&broker, PollFlags::IN)];
    retry_on_intr(|| poll(&mut process, None))?;
    let ended = process[0].revents().contains(PollFlags::IN);
    ensure!(ended, "poll: {process:?}");
    deliver(&Tcp, &last).await;
    Ok(ExitCode::SUCCESS)
}

/// A last will as it goes through the pipe: its length, then for each letter where to and what, each with
/// its length in front; all lengths are four bytes.
fn encode(will: &[Letter]) -> Vec<u8> {
    let mut body = Vec::new();
    let fields = will
        .iter()
        .flat_map(|letter| [letter.to.as_bytes(), &letter.bytes]);
    for field in fields {
        body.put_u32(u32::try_from(field.len()).expect("letters are short"));
        body.put_slice(field);
    }
    let len = u32::try_from(body.len()).expect("letters are few");
    let mut encoded = len.to_be_bytes().to_vec();
    encoded.append(&mut body);
    encoded
}

/// The next last will; `None` when no other comes whole.
async fn next_will(pipe: &mut pipe::Receiver) -> anyhow::Result<Option<Vec<Letter>>> {
    let Ok(len) = pipe.read_u32().await else {
        return Ok(None);
    };
    let len = usize::try_from(len)?;
    ensure!(len <= MAX_WILL, "a last will of {len} bytes");
    let mut body = vec![0; len];
    if pipe.read_exact(&mut body).await.is_err() {
        return Ok(None);
    }
    decode(&body).map(Some)
}

fn decode(mut body: &[u8]) -> anyhow::Result<Vec<Letter>> {
    let mut field = || -> anyhow::Result<Option<Vec<u8>>> {
        if body.is_empty() {
            return Ok(None);
        }
        let len = usize::try_from(body.try_get_u32()?)?;
        let (field, rest) = body.split_at_checked(len).context("a letter is cut off")?;
        body = rest;
        Ok(Some(field.to_vec()))
    };
    let mut will = Vec::new();
    while let Some(to) = field()? {
        let bytes = field()?.context("a letter is empty")?;
        let to = String::from_utf8(to)?;
        will.push(Letter { to, bytes });
    }
    Ok(will)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_never_resolved_is_not_waited_for() {
        let (never, silent) = std::sync::mpsc::channel::<()>();
        let unresolved = async move { drop(tokio::task::spawn_blocking(move || silent.recv())) };
        on_runtime(unresolved).unwrap();
        drop(never);
    }

    #[test]
    fn a_last_will_goes_through_the_pipe_as_it_is() {
        let letter = |to: &str, bytes: &[u8]| Letter {
            to: to.to_owned(),
            bytes: bytes.to_vec(),
        };
        for will in [
            vec![],
            vec![letter("10.0.0.1:40911", b"dead"), letter("", &[0xff; 300])],
        ] {
            let encoded = encode(&will);
            let (len, body) = encoded.split_at(4);
            assert_eq!(len, u32::try_from(body.len()).unwrap().to_be_bytes());
            assert!(decode(body).unwrap() == will);
            let whole = (0..body.len()).filter(|cut| decode(&body[..*cut]).is_ok());
            // Cut between letters, fewer are left.
            assert!(whole.count() <= will.len());
        }
    }
}
