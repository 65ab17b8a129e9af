use super::totals::Counters;
use super::window::Item;
use super::*;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn a_rate_is_told_over_what_there_was() {
    let begin = Instant::now();
    let counters = Counters::new(begin, 0);
    let puts = |seconds| counters.rate(seconds, |totals| totals.put_messages);
    assert_eq!(puts(10), 0.0);
    // Ten a second, but nothing in the last 30 s of 90.
    for second in 1..=90 {
        if second <= 60 {
            counters.put(10, 1);
        }
        counters.sample(begin + SECOND * second, 0);
        if second == 5 {
            assert_eq!((puts(10), puts(600)), (10.0, 10.0));
        }
    }
    assert_eq!((puts(10), puts(60)), (0.0, 5.0));
    assert_eq!(puts(600), 600.0 / 90.0);
}

#[test]
fn no_more_samples_are_kept_than_a_rate_needs() {
    let begin = Instant::now();
    let counters = Counters::new(begin, 0);
    for second in 1..=1500 {
        counters.put(2, 0);
        counters.sample(begin + SECOND * second, 0);
    }
    let puts = |seconds| counters.rate(seconds, |totals| totals.put_messages);
    assert_eq!((puts(600), puts(100_000)), (2.0, 2.0));
    assert_eq!(counters.now().put_messages, 3000);
}

#[test]
fn a_day_begins_once() {
    let day = 24 * 60 * 60 * 1000;
    let now = Instant::now();
    let counters = Counters::new(now, 5 * day - 1);
    counters.put(3, 0);
    counters.got(2, Duration::from_millis(7));
    counters.sample(now, 5 * day - 1);
    assert_eq!(counters.mornings().1.put, 0);
    counters.sample(now, 5 * day);
    counters.put(1, 0);
    // Back before midnight, and over it again.
    counters.sample(now, 5 * day - 1);
    counters.sample(now, 5 * day + 1);
    let (yesterday, today) = counters.mornings();
    assert_eq!((yesterday.put, today.put, today.got), (0, 3, 2));
    counters.sample(now, 6 * day);
    let (yesterday, today) = counters.mornings();
    assert_eq!((yesterday.put, yesterday.got, today.put), (3, 2, 4));
    assert_eq!(counters.longest_get_ms(), 7);
}

#[test]
fn durations_are_told_for_the_last_whole_minute() {
    let begin = Instant::now();
    let latency = Latency::new(begin);
    let ms = |ms| latency.record(Duration::from_millis(ms));
    for took in [
        0,
        0,
        1,
        9,
        10,
        49,
        50,
        99,
        100,
        4999,
        5000,
        9999,
        10_000,
        1 << 40,
    ] {
        ms(took);
    }
    assert_eq!(latency.distribution(), "null");
    assert_eq!(latency.quantile(0.99), 0.0);
    latency.rotate(begin + SECOND * 59);
    assert_eq!(latency.distribution(), "null");
    latency.rotate(begin + SECOND * 60);
    assert_eq!(
        latency.distribution(),
        "[<=0ms]:2 [0~10ms]:2 [10~50ms]:2 [50~100ms]:2 [100~200ms]:1 [200~500ms]:0 [500ms~1s]:0 \
         [1~2s]:0 [2~3s]:0 [3~4s]:0 [4~5s]:1 [5~10s]:2 [10s~]:2 "
    );
    assert_eq!(latency.longest_ms(), 1 << 40);
    latency.rotate(begin + SECOND * 120);
    assert!(latency.distribution().starts_with("[<=0ms]:0 "));
    assert_eq!(latency.quantile(0.5), 0.0);
}

#[test]
fn a_quantile_lies_in_its_bucket() {
    let begin = Instant::now();
    let latency = Latency::new(begin);
    for ms in 0..1000 {
        latency.record(Duration::from_millis(ms % 20));
    }
    latency.rotate(begin + SECOND * 60);
    let median = latency.quantile(0.5);
    assert!((9.0..=10.0).contains(&median), "{median}");
    let p99 = latency.quantile(0.99);
    assert!((19.0..=20.0).contains(&p99), "{p99}");
    for _ in 0..100 {
        latency.record(Duration::from_secs(99));
    }
    latency.rotate(begin + SECOND * 120);
    assert_eq!(latency.quantile(0.99), 10_000.0);
}

#[test]
fn an_item_knows_its_last_minute_hour_and_day() {
    let begin = Instant::now();
    let item = Item::new(begin);
    item.add(30, 300);
    let recent = item.recent(begin + SECOND);
    assert_eq!(recent.map(|recent| recent.messages), [30; 3]);
    // As if it had taken the time between two samples.
    assert_eq!(recent[0].message_rate(), 3.0);

    for step in 1..=12 {
        let now = begin + SECOND * 10 * step;
        item.sample(0, now);
        item.add(10, 100);
    }
    let recent = item.recent(begin + SECOND * 120);
    assert_eq!((recent[0].times, recent[0].messages), (6, 60));
    assert_eq!(recent[0].message_rate(), 60.0 / 50.0);
    assert_eq!((recent[2].times, recent[2].bytes), (13, 1500));
}

#[test]
fn what_nobody_uses_for_a_day_is_forgotten() {
    let begin = Instant::now();
    let items = Items::new(begin);
    items.topic_puts.add("idle", 1, 1, begin);
    items.topic_puts.add("busy", 1, 1, begin);
    for hour in 1..=30 {
        let now = begin + HOUR * hour;
        items.topic_puts.add("busy", 1, 1, now);
        items.sample(now);
    }
    assert!(items.topic_puts.get("idle").is_none());
    let busy = items.topic_puts.get("busy").unwrap();
    assert_eq!(busy.recent(begin + HOUR * 30)[2].messages, 23);
}

#[test]
fn how_far_a_group_pulled_is_kept_by_queue() {
    let stats = Stats::new(0);
    let got = |queue_id, next| Got {
        group: "g",
        topic: "T",
        queue_id,
        next,
        messages: 2,
        bytes: 20,
    };
    for (queue_id, next) in [(0, 5), (1, 7), (0, 9)] {
        stats.got(&got(queue_id, next), Duration::ZERO);
    }
    let item = stats.items.of_group("T", "g").unwrap();
    let pulled = [0, 1, 2].map(|queue_id| item.pulled_to(queue_id));
    assert_eq!(pulled, [Some(9), Some(7), None]);
    stats.items.forget_pulls("T", "g");
    assert_eq!(item.pulled_to(0), None);
    assert!(stats.items.of_group("T", "other").is_none());
}

#[test]
fn a_put_is_counted_by_topic_once_it_is_stored() {
    let record = |topic: &str| PendingRecord {
        buf: vec![0; 100],
        topic: topic.into(),
        queue_id: 0,
        queued: true,
    };
    let stats = Stats::new(0);
    let put = Stats::begin_put(&[record("a"), record("a"), record("b")]);
    stats.end_put(&put, false);
    assert!(stats.items.topic_puts.get("a").is_none());
    stats.end_put(&put, true);
    let totals = stats.totals.now();
    assert_eq!(
        (totals.puts_failed, totals.put_messages, totals.put_bytes),
        (1, 3, 300)
    );
    let of = |topic| {
        stats
            .items
            .topic_puts
            .get(topic)
            .unwrap()
            .recent(Instant::now())[0]
    };
    assert_eq!(
        (of("a").times, of("a").messages, of("a").bytes),
        (1, 2, 200)
    );
    assert_eq!(of("b").messages, 1);
}
