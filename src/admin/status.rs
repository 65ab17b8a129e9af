//! The state of a group, as it is shown.

use crate::broker::NodeStatus;
use crate::raft::{GroupStatus, MemberStatus, Role, SelfId};

/// A table of the members as the node that answers sees them: role, addresses, how far each has
/// replicated, by how many entries it lags and how long ago it answered. The last three are known to
/// the leader only, as are the nodes that ask to become members.
#[must_use]
pub fn render(status: &NodeStatus) -> String {
    let group = &status.group;
    let number = |n: Option<u64>| n.map_or_else(|| "-".into(), |n| n.to_string());
    let leader = group
        .leader
        .as_ref()
        .map_or("none", |l| l.broker_addr.as_str());
    let mut text = format!(
        "group {}  term {}  leader {leader}  commit {}  applied {}  last {}  (as {} sees it)\n",
        status.broker_name,
        group.term,
        number(group.commit_index),
        number(group.applied_index),
        number(group.last_index),
        status.self_id,
    );
    if let Some(frozen) = &status.frozen {
        text += &format!(
            "FROZEN at term {} index {}, end offset {}: takes nothing until raftThaw\n",
            frozen.term, frozen.index, frozen.end_offset
        );
    }
    let mut rows = vec![HEADINGS.map(String::from)];
    rows.extend(group.members.iter().map(|m| member_row(m, group)));
    text += &table(&rows);
    for asking in &group.asking {
        text += &format!(
            "{id} (node {:016x}, {}) asks to join: mqadmin raftAddNode --node {id}\n",
            asking.node,
            asking.raft_addr,
            id = SelfId::of(asking.node),
        );
    }
    text
}

/// What each node's disk has lost and no other node could give back.
#[must_use]
pub fn damaged(statuses: &[NodeStatus]) -> String {
    let all = statuses.iter().flat_map(|status| {
        let damaged = status.group.damaged.iter();
        damaged.map(|damage| format!("DAMAGED on {}: {damage}\n", status.self_id))
    });
    all.collect()
}

/// The nodes that do not vote because they may have lost entries, a line for each, and what to do if no node
/// leads.
#[must_use]
pub fn quarantined(statuses: &[NodeStatus]) -> String {
    let lost = statuses.iter().filter(|status| status.group.quarantined);
    let mut text = lost.map(|status| {
        let last = status.group.last_index;
        format!(
            "{} in QUARANTINE: it lost power under ASYNC_FLUSH, or the end of its log was damaged, and \
             does not vote before it has what a leader has; last {}\n",
            status.self_id,
            last.map_or_else(|| "-".to_owned(), |last| last.to_string()),
        )
    })
    .collect::<String>();
    if !text.is_empty() && !statuses.iter().any(|status| status.group.serving) {
        text += "no node leads: start those that are missing; if none leads then, mqadmin raftRecover has \
                 the longest log lead, and what only others had is lost\n";
    }
    text
}

const HEADINGS: [&str; 8] = [
    "id", "role", "clients", "raft", "matched", "lag", "heard", "node",
];

fn member_row(member: &MemberStatus, group: &GroupStatus) -> [String; 8] {
    let is_leader = group.leader.as_ref().is_some_and(|l| l.node == member.node);
    let role = match (is_leader, member.voter) {
        (true, _) => "leader",
        (false, true) => "follower",
        (false, false) => "learner",
    };
    let or_dash = |n: Option<u64>| n.map_or_else(|| "-".into(), |n| n.to_string());
    let heard = member.acked_ms.filter(|_| !is_leader);
    [
        SelfId::of(member.node).to_string(),
        role.into(),
        member.broker_addr.clone(),
        member.raft_addr.clone(),
        or_dash(member.match_index),
        or_dash(member.lag),
        heard.map_or_else(|| "-".into(), |ms| format!("{ms} ms")),
        format!("{:016x}", member.node),
    ]
}

/// A role in one word.
#[must_use]
pub fn role_name(role: Role) -> &'static str {
    match role {
        Role::Leader => "leader",
        Role::Follower => "follower",
        Role::Candidate => "candidate",
        Role::Learner => "learner",
    }
}

/// Rows of equal width, columns padded to their longest cell, two spaces between them.
#[must_use]
pub fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        rows.iter()
            .map(|r| r[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            line += &format!("{cell:width$}  ");
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::table;

    #[test]
    fn columns_are_as_wide_as_their_longest_cell() {
        let rows = [["a", "long"], ["wide one", "b"]].map(|r| r.map(String::from));
        assert_eq!(table(&rows), "a         long\nwide one  b\n");
    }
}
