//! A program of the operator's that is told when this node's role changes (`roleChangeHook`): to move an
//! address, to tell a load balancer, to page somebody.

use std::io;
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::Command;
use tokio::sync::watch;
use tokio::time::timeout;

use super::Role;
use crate::config::BrokerConfig;
use crate::shutdown::Shutdown;

/// Calls the program at the start and on every change, one call after the other, until the group is
/// gone or `stopping`; a call that runs then is not cut short. Of changes during a call only the last is told. Returns
/// at once without a program.
pub(super) async fn run(
    config: &BrokerConfig,
    mut roles: watch::Receiver<Role>,
    mut stopping: Shutdown,
) {
    let Some(program) = &config.role_change_hook else {
        return;
    };
    let mut told = None;
    loop {
        let role = roles.borrow_and_update().clone();
        // A node that leads again has been replaced meanwhile, though nothing was told of that.
        let term = role.serving.then_some(role.term);
        let now = (name(&role), role.leader.clone(), term);
        if told.as_ref() != Some(&now) {
            call(program, config, &role).await;
            told = Some(now);
        }
        let changed = tokio::select! {
            biased;
            changed = roles.changed() => changed.is_ok(),
            () = stopping.asked() => false,
        };
        if !changed {
            return;
        }
    }
}

fn name(role: &Role) -> &'static str {
    match (role.serving, &role.leader) {
        (true, _) => "leader",
        (false, Some(_)) => "follower",
        (false, None) => "no-leader",
    }
}

/// `PROGRAM ROLE GROUP TERM` (leader, follower or no-leader), with the leader's address in `RMQ_LEADER`.
async fn call(program: &Path, config: &BrokerConfig, role: &Role) {
    let (shown, name) = (program.display(), name(role));
    let own = config.broker_addr();
    let leader = match role.serving {
        true => Some(&own),
        false => role.leader.as_ref(),
    };
    let mut command = Command::new(program);
    command
        .args([name, &config.broker_name, &role.term.to_string()])
        .env("RMQ_LEADER", leader.map_or("", String::as_str))
        .env("RMQ_NODE", &own)
        .stdin(std::process::Stdio::null())
        // With what it has started it is ended together.
        .process_group(0);
    let limit: Duration = config.role_change_hook_timeout_millis;
    match timeout(limit, run_in_group(command)).await {
        Ok(Ok(status)) if status.success() => {
            tracing::info!("roleChangeHook {shown} was told: {name}");
        }
        Ok(Ok(status)) => tracing::warn!("roleChangeHook {shown} {name}: {status}"),
        Ok(Err(error)) => tracing::warn!("roleChangeHook {shown} could not be started: {error}"),
        Err(_) => tracing::warn!("roleChangeHook {shown} {name} was ended after {limit:?}"),
    }
}

/// Runs a program that leads a process group of its own; whoever stops waiting for it ends the whole group.
async fn run_in_group(mut command: Command) -> io::Result<ExitStatus> {
    let mut child = command.spawn()?;
    let mut group = Group(child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?)));
    let status = child.wait().await;
    // What it left running on purpose goes on.
    group.0 = None;
    status
}

/// A process group that is killed when this is dropped.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            kill_process_group(leader, Signal::KILL).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use rustix::fs::{Mode, OFlags, open};
    use rustix::io::{Errno, write};
    use tempfile::TempDir;
    use tokio::task::JoinHandle;

    use super::*;
    use crate::shutdown::Trigger;
    use crate::testing::until;

    /// A program that writes what it is told into a file, and does something more.
    struct Told {
        dir: TempDir,
        roles: watch::Sender<Role>,
        running: JoinHandle<()>,
        stop: Trigger,
    }

    impl Told {
        fn start(more: &str, limit: Duration) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let program = dir.path().join("hook");
            let script = format!(
                "#!/bin/sh\ncd {}\necho \"$* $RMQ_LEADER\" >>out\n{more}\n",
                dir.path().display()
            );
            // By another process: what this one has open for writing a child of another test may have too.
            let writes = r#"printf %s "$1" >"$0" && chmod +x "$0""#;
            let mut writer = std::process::Command::new("sh");
            writer.args(["-c", writes]).arg(&program).arg(script);
            assert!(writer.status().unwrap().success());
            let config = BrokerConfig {
                broker_name: "g".to_owned(),
                broker_ip1: "10.0.0.1".to_owned(),
                role_change_hook: Some(program),
                role_change_hook_timeout_millis: limit,
                ..BrokerConfig::default()
            };
            let (roles, watched) = watch::channel(Role::default());
            let (stop, stopping) = Shutdown::new();
            let running = tokio::spawn(async move { run(&config, watched, stopping).await });
            Self {
                dir,
                roles,
                running,
                stop,
            }
        }

        fn file(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn out(&self) -> String {
            fs::read_to_string(self.file("out")).unwrap_or_default()
        }

        async fn until(&self, lines: usize) {
            until("it is told", || self.out().lines().count() >= lines).await;
        }

        fn leads(&self, term: u64) {
            self.roles.send_replace(Role {
                term,
                leader: None,
                serving: true,
            });
        }
    }

    // A slow machine has begun the program by then.
    const LIMIT: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn the_program_is_told_each_role_and_cannot_hang() {
        let told = Told::start("[ $1 != no-leader ] || exec sleep 600", LIMIT);
        told.until(1).await;
        told.roles.send_replace(Role {
            term: 2,
            leader: Some("10.0.0.2:10911".to_owned()),
            serving: false,
        });
        told.until(2).await;
        // A new term of the same leader is no other role, but for the node that leads again.
        told.roles.send_modify(|role| role.term = 3);
        tokio::time::sleep(Duration::from_millis(100)).await;
        told.leads(4);
        told.until(3).await;
        told.leads(6);
        told.until(4).await;
        let out = told.out();
        drop(told.roles);
        told.running.await.unwrap();
        assert_eq!(
            out,
            "no-leader g 0 \nfollower g 2 10.0.0.2:10911\nleader g 4 10.0.0.1:10911\nleader g 6 10.0.0.1:10911\n"
        );
    }

    #[tokio::test]
    async fn what_the_program_has_started_ends_with_it_when_it_takes_too_long() {
        // Whoever has the pipe open reads or writes yet.
        let told = Told::start("[ $1 = leader ] || { mkfifo pipe; cat pipe; }", LIMIT);
        told.until(1).await;
        let pipe = told.file("pipe");
        let open = || open(&pipe, OFlags::WRONLY | OFlags::NONBLOCK, Mode::empty());
        // It stays open, so that whoever reads it does not come to its end.
        let mut writer = None;
        until("somebody reads the pipe", || {
            writer = open().ok();
            writer.is_some()
        })
        .await;
        told.leads(1);
        told.until(2).await;
        until("nobody reads the pipe", || {
            write(writer.as_ref().unwrap(), b"?") == Err(Errno::PIPE)
        })
        .await;
    }

    #[tokio::test]
    async fn a_stop_waits_for_the_call_that_runs() {
        let told = Told::start(
            "until [ -e go ]; do sleep 0.01; done; echo done >>out",
            LIMIT * 6,
        );
        told.until(1).await;
        told.stop.stop();
        tokio::task::yield_now().await;
        assert!(!told.running.is_finished());
        let Told { dir, running, .. } = told;
        fs::write(dir.path().join("go"), "").unwrap();
        running.await.unwrap();
        let out = fs::read_to_string(dir.path().join("out")).unwrap();
        assert_eq!(out, "no-leader g 0 \ndone\n");
    }
}
