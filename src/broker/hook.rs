//! A program of the operator's that is told when this node's role changes (`roleChangeHook`): to move an
//! address, to tell a load balancer, to page somebody.

use std::path::Path;
use std::time::Duration;

use tokio::process::Command;
use tokio::sync::watch;
use tokio::time::timeout;

use super::Role;
use crate::config::BrokerConfig;

/// Calls the program at the start and on every change, one call after the other, until the group is
/// gone. Of changes during a call only the last is told. Returns at once without a program.
pub(super) async fn run(config: &BrokerConfig, mut roles: watch::Receiver<Role>) {
    let Some(program) = &config.role_change_hook else {
        return;
    };
    let mut told = None;
    loop {
        let role = roles.borrow_and_update().clone();
        let now = (name(&role), role.leader.clone());
        if told.as_ref() != Some(&now) {
            call(program, config, &role).await;
            told = Some(now);
        }
        if roles.changed().await.is_err() {
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
        .kill_on_drop(true);
    let limit: Duration = config.role_change_hook_timeout_millis;
    match timeout(limit, command.status()).await {
        Ok(Ok(status)) if status.success() => {
            tracing::info!("roleChangeHook {shown} was told: {name}");
        }
        Ok(Ok(status)) => tracing::warn!("roleChangeHook {shown} {name}: {status}"),
        Ok(Err(error)) => tracing::warn!("roleChangeHook {shown} could not be started: {error}"),
        Err(_) => tracing::warn!("roleChangeHook {shown} {name} was ended after {limit:?}"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn the_program_is_told_each_role_and_cannot_hang() {
        let dir = tempfile::tempdir().unwrap();
        let (program, out) = (dir.path().join("hook"), dir.path().join("out"));
        let script = format!(
            "#!/bin/sh\necho \"$* $RMQ_LEADER\" >>{}\n[ $1 != no-leader ] || exec sleep 600\n",
            out.display()
        );
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let config = BrokerConfig {
            broker_name: "g".to_owned(),
            broker_ip1: "10.0.0.1".to_owned(),
            role_change_hook: Some(program),
            // A slow machine has begun the program by then.
            role_change_hook_timeout_millis: Duration::from_secs(10),
            ..BrokerConfig::default()
        };
        let (roles, watched) = watch::channel(Role::default());
        let running = tokio::spawn(async move { run(&config, watched).await });
        let until = async |lines: usize| {
            while fs::read_to_string(&out).unwrap_or_default().lines().count() < lines {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        until(1).await;
        roles.send_replace(Role {
            term: 2,
            leader: Some("10.0.0.2:10911".to_owned()),
            serving: false,
        });
        until(2).await;
        // A new term of the same leader is no other role.
        roles.send_modify(|role| role.term = 3);
        roles.send_replace(Role {
            term: 4,
            leader: None,
            serving: true,
        });
        until(3).await;
        drop(roles);
        running.await.unwrap();
        assert_eq!(
            fs::read_to_string(&out).unwrap(),
            "no-leader g 0 \nfollower g 2 10.0.0.2:10911\nleader g 4 10.0.0.1:10911\n"
        );
    }
}
