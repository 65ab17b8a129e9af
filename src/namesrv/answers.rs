//! Routes as they are sent. Clients ask for the same few again and again, far more often than anything in
//! them changes; so each is made and encoded once for all.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use rmq_wire::json;

use super::routes::Routes;

/// More topics than are asked for at a time. What comes beyond begins anew.
const KEPT_MAX: usize = 10_000;

/// The encoded routes.
#[derive(Debug, Default)]
pub(super) struct Answers(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    /// Of these [`Routes::changes`].
    changes: u64,
    /// By topic, for clients that remember which broker name has failed, and for those that do not.
    bodies: [HashMap<String, Bytes>; 2],
}

impl Answers {
    /// The route of a topic as JSON; `None` when no broker that has it is known.
    pub(super) fn of(&self, routes: &Routes, topic: &str, forgets: bool) -> Option<Bytes> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.changes != routes.changes() {
            *kept = Kept::default();
            kept.changes = routes.changes();
        }
        let bodies = &mut kept.bodies[usize::from(forgets)];
        if let Some(body) = bodies.get(topic) {
            return Some(body.clone());
        }
        if bodies.len() >= KEPT_MAX {
            bodies.clear();
        }
        let body = Bytes::from(json::to_vec(&routes.route(topic, forgets)?));
        bodies.insert(topic.to_owned(), body.clone());
        Some(body)
    }
}

#[cfg(test)]
mod tests {
    use super::super::routes::tests::registration;
    use super::*;
    use rmq_wire::body::TopicRouteData;
    use tokio::time::Instant;

    #[test]
    fn a_route_is_kept_until_anything_changes() {
        let (answers, mut routes) = (Answers::default(), Routes::default());
        let now = Instant::now();
        let leader = |answers: &Answers, routes: &Routes| {
            let route: TopicRouteData = json::from_slice(&answers.of(routes, "T", false)?).unwrap();
            Some(route.broker_datas[0].broker_addrs[&0].clone())
        };
        assert_eq!(leader(&answers, &routes), None);
        routes.register(registration("a1", 0, 1), now).unwrap();
        assert_eq!(leader(&answers, &routes).unwrap(), "a1");
        let (one, again) = (
            answers.of(&routes, "T", false),
            answers.of(&routes, "T", false),
        );
        assert_eq!(one.unwrap().as_ptr(), again.unwrap().as_ptr());
        assert_eq!(answers.of(&routes, "U", false), None);

        routes.register(registration("a2", 0, 2), now).unwrap();
        assert_eq!(leader(&answers, &routes).unwrap(), "a2");
        routes.set_write_perm("b", false);
        let route: TopicRouteData =
            json::from_slice(&answers.of(&routes, "T", false).unwrap()).unwrap();
        assert_eq!(route.queue_datas[0].perm & 2, 0);
        // The end of a client's connection changes nothing.
        let before = answers.of(&routes, "T", false).unwrap();
        routes.connection_closed(99);
        assert_eq!(
            answers.of(&routes, "T", false).unwrap().as_ptr(),
            before.as_ptr()
        );
        routes.connection_closed(2);
        assert_eq!(leader(&answers, &routes).unwrap(), "a1");
        routes.delete_topic("T", None);
        assert_eq!(leader(&answers, &routes), None);
    }
}
