//! The state of a group, as it is shown.

use crate::broker::NodeStatus;
use crate::raft::{GroupStatus, MemberStatus, Role};

/// A table of the members as the node that answers sees them: role, addresses, how far each has
/// replicated and by how many entries it lags. Lags are known to the leader only.
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
    let mut rows = vec![["node", "role", "clients", "raft", "matched", "lag"].map(String::from)];
    rows.extend(group.members.iter().map(|m| member_row(m, group)));
    text += &table(&rows);
    text
}

fn member_row(member: &MemberStatus, group: &GroupStatus) -> [String; 6] {
    let is_leader = group.leader.as_ref().is_some_and(|l| l.node == member.node);
    let role = match (is_leader, member.voter) {
        (true, _) => "leader",
        (false, true) => "follower",
        (false, false) => "learner",
    };
    let or_dash = |n: Option<u64>| n.map_or_else(|| "-".into(), |n| n.to_string());
    [
        format!("{:016x}", member.node),
        role.into(),
        member.broker_addr.clone(),
        member.raft_addr.clone(),
        or_dash(member.match_index),
        or_dash(member.lag),
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
