//! `VIEW_BROKER_STATS_DATA`: how much went on in the last minute, hour and day.

use std::sync::Arc;

use rmq_wire::body::{BrokerStatsData, BrokerStatsItem};
use rmq_wire::header::ViewBrokerStatsData;
use tokio::time::Instant;

use super::answer;
use crate::broker::Broker;
use crate::broker::refusal::{Handled, Refusal};
use crate::broker::stats::Recent;
use crate::remoting::Request;

pub(in crate::broker) async fn stats_data(broker: &Arc<Broker>, request: &Request) -> Handled {
    let header: ViewBrokerStatsData = request.command.header()?;
    let ViewBrokerStatsData {
        stats_name: name,
        stats_key: key,
    } = &header;
    let Some(recent) = recent(broker, name, key) else {
        let remark = format!("The stats <{name}> <{key}> not exist");
        return Err(Refusal::system_error(remark));
    };
    let of: fn(&Recent) -> u64 = if name.ends_with("_SIZE") {
        |recent| recent.bytes
    } else {
        |recent| recent.messages
    };
    let [minute, hour, day] = recent.map(|recent| shown(&recent, of(&recent)));
    let body = BrokerStatsData {
        stats_day: day,
        stats_hour: hour,
        stats_minute: minute,
    };
    answer(request, &body)
}

/// The counters of that name (`Stats`, 4.9.8), if there are such and there is that key.
fn recent(broker: &Broker, name: &str, key: &str) -> Option<[Recent; 3]> {
    let items = &broker.stats.items;
    let now = Instant::now();
    let of_cluster = |item| (key == broker.config.broker_cluster_name).then_some(item);
    match name {
        "BROKER_PUT_NUMS" => of_cluster(&items.broker_puts).map(|item| item.recent(now)),
        "BROKER_GET_NUMS" => of_cluster(&items.broker_gets).map(|item| item.recent(now)),
        _ => {
            let table = match name {
                "TOPIC_PUT_NUMS" | "TOPIC_PUT_SIZE" => &items.topic_puts,
                "GROUP_GET_NUMS" | "GROUP_GET_SIZE" => &items.group_gets,
                "SNDBCK_PUT_NUMS" => &items.send_backs,
                _ => return None,
            };
            table.get(key).map(|item| item.recent(now))
        }
    }
}

fn shown(recent: &Recent, sum: u64) -> BrokerStatsItem {
    BrokerStatsItem {
        avgpt: match recent.times {
            0 => 0.0,
            times => sum as f64 / times as f64,
        },
        sum: i64::try_from(sum).unwrap_or(i64::MAX),
        tps: sum as f64 / recent.elapsed.as_secs_f64(),
    }
}
