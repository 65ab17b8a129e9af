//! The types that a key's value can have, each with its one way to be read and printed.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

/// Why a value was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BadValue {
    /// Follows the key's name and a colon.
    pub(super) message: String,
    /// The bytes of the value that are wrong; all of it when absent.
    pub(super) span: Option<Range<usize>>,
}

impl BadValue {
    pub(super) fn want(want: impl fmt::Display, text: &str) -> Self {
        Self {
            message: format!("`{text}` is not {want}"),
            span: None,
        }
    }
}

/// A value that stands behind a key of a properties file.
pub(super) trait Value: Sized {
    /// Reads the text of a value, which has no white space around it.
    fn parse(text: &str) -> Result<Self, BadValue>;
    /// The text that [`Value::parse`] reads back as an equal value.
    fn show(&self) -> String;
    /// The number that a range of the key is about, where there is one.
    fn number(&self) -> Option<u64> {
        None
    }
}

macro_rules! number_value {
    ($($ty:ty),*) => {$(
        impl Value for $ty {
            fn parse(text: &str) -> Result<Self, BadValue> {
                text.parse().map_err(|_| {
                    BadValue::want(format_args!("a whole number from 0 to {}", <$ty>::MAX), text)
                })
            }
            fn show(&self) -> String {
                self.to_string()
            }
            fn number(&self) -> Option<u64> {
                Some(u64::from(*self))
            }
        }
    )*};
}
number_value!(u8, u16, u32, u64);

impl Value for bool {
    fn parse(text: &str) -> Result<Self, BadValue> {
        // Java's Boolean.parseBoolean ignores case and takes everything else for false, which hides
        // typing errors; only what it would read as meant is accepted here.
        if text.eq_ignore_ascii_case("true") {
            Ok(true)
        } else if text.eq_ignore_ascii_case("false") {
            Ok(false)
        } else {
            Err(BadValue::want("true or false", text))
        }
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for String {
    fn parse(text: &str) -> Result<Self, BadValue> {
        match text.find(char::is_control) {
            None => Ok(text.to_owned()),
            Some(at) => Err(BadValue {
                message: "has a control character".into(),
                span: Some(at..at + 1),
            }),
        }
    }

    fn show(&self) -> String {
        self.clone()
    }
}

/// Milliseconds, as all of RocketMQ's intervals that do not say otherwise in their name.
impl Value for Duration {
    fn parse(text: &str) -> Result<Self, BadValue> {
        text.parse()
            .map(Duration::from_millis)
            .map_err(|_| BadValue::want("a whole number of milliseconds", text))
    }

    fn show(&self) -> String {
        self.as_millis().to_string()
    }

    fn number(&self) -> Option<u64> {
        u64::try_from(self.as_millis()).ok()
    }
}

/// Hours of a day, from 0 to 23.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hours(pub Vec<u8>);

impl Value for Hours {
    fn parse(text: &str) -> Result<Self, BadValue> {
        let hour = |text: &str| text.trim().parse().ok().filter(|hour| *hour < 24);
        text.split(';')
            .map(hour)
            .collect::<Option<_>>()
            .map(Self)
            .ok_or_else(|| BadValue::want("hours from 00 to 23 with semicolons between them", text))
    }

    fn show(&self) -> String {
        let hours: Vec<String> = self.0.iter().map(|hour| format!("{hour:02}")).collect();
        hours.join(";")
    }
}

impl Value for PathBuf {
    fn parse(text: &str) -> Result<Self, BadValue> {
        if text.is_empty() {
            return Err(BadValue {
                message: "the path is empty".into(),
                span: None,
            });
        }
        String::parse(text).map(PathBuf::from)
    }

    fn show(&self) -> String {
        self.display().to_string()
    }
}

/// A key that may be left out has no value then, and prints as nothing.
impl<T: Value> Value for Option<T> {
    fn parse(text: &str) -> Result<Self, BadValue> {
        if text.is_empty() {
            Ok(None)
        } else {
            T::parse(text).map(Some)
        }
    }

    fn show(&self) -> String {
        self.as_ref().map(T::show).unwrap_or_default()
    }

    fn number(&self) -> Option<u64> {
        self.as_ref().and_then(T::number)
    }
}

impl Value for IpAddr {
    fn parse(text: &str) -> Result<Self, BadValue> {
        text.parse()
            .map_err(|_| BadValue::want("an IP address", text))
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

/// An address that moves with the leader: `10.0.0.100/24@eth0`, or `10.0.0.100` if something else moves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vip {
    /// The address.
    pub ip: Ipv4Addr,
    /// Where this node takes it while it leads; `None` if it does not.
    pub place: Option<VipPlace>,
}

/// Where a moving address is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VipPlace {
    /// Bits of the address's network, from 1 to 32.
    pub prefix: u8,
    /// The network device.
    pub device: String,
}

impl Value for Vip {
    fn parse(text: &str) -> Result<Self, BadValue> {
        /// `IFNAMSIZ` with its final zero.
        const DEVICE_MAX: usize = 15;
        let read_place = |text: &str| {
            let (prefix, device) = text.split_once('@')?;
            let prefix = prefix.parse().ok().filter(|bits| (1..=32).contains(bits))?;
            let is_device = (1..=DEVICE_MAX).contains(&device.len())
                && !device.contains(|c: char| c == '/' || c.is_whitespace());
            is_device.then(|| VipPlace {
                prefix,
                device: device.to_owned(),
            })
        };
        let read = || {
            let (ip, place) = match text.split_once('/') {
                Some((ip, place)) => (ip, Some(read_place(place)?)),
                None => (text, None),
            };
            let ip: Ipv4Addr = ip.parse().ok()?;
            let is_host = !(ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast());
            is_host.then_some(Self { ip, place })
        };
        let want = "an IPv4 address with its network and its device, or alone if something else moves \
                    it; want 10.0.0.100/24@eth0 or 10.0.0.100";
        read().ok_or_else(|| BadValue::want(want, text))
    }

    fn show(&self) -> String {
        match &self.place {
            Some(VipPlace { prefix, device }) => format!("{}/{prefix}@{device}", self.ip),
            None => self.ip.to_string(),
        }
    }
}

/// The part a broker plays outside a Raft group (store `BrokerRole`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrokerRole {
    AsyncMaster,
    SyncMaster,
    Slave,
}

/// When a write is durable enough to be acknowledged (store `FlushDiskType`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushDiskType {
    /// After `fdatasync` on a majority.
    SyncFlush,
    /// Once it is in the page cache of a majority.
    AsyncFlush,
}

/// What the nodes of a group do that may all have lost entries they acknowledged: the machines went
/// down without a sync under ASYNC_FLUSH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UncleanRecovery {
    /// Such a node does not vote before it has all that a leader has; a majority of them waits.
    Manual,
    /// When all voters have answered, or those that answer have waited for 10 s, it votes for the longest log among them.
    LongestLog,
}

macro_rules! enum_value {
    ($ty:ident { $($variant:ident = $name:literal),* }) => {
        impl Value for $ty {
            fn parse(text: &str) -> Result<Self, BadValue> {
                match text {
                    $($name => Ok(Self::$variant),)*
                    _ => {
                        let names = [$($name),*];
                        let mut message = format!("`{text}` is not one of {}", names.join(", "));
                        if let Some(near) = super::suggest::nearest(text, names) {
                            message.push_str(&format!("; did you mean `{near}`?"));
                        }
                        Err(BadValue { message, span: None })
                    }
                }
            }
            fn show(&self) -> String {
                match self { $(Self::$variant => $name,)* }.to_owned()
            }
        }
    };
}
enum_value!(BrokerRole {
    AsyncMaster = "ASYNC_MASTER",
    SyncMaster = "SYNC_MASTER",
    Slave = "SLAVE"
});
enum_value!(FlushDiskType { SyncFlush = "SYNC_FLUSH", AsyncFlush = "ASYNC_FLUSH" });
enum_value!(UncleanRecovery { Manual = "manual", LongestLog = "longest-log" });

/// One entry of `dLegerPeers`: `n0-10.0.0.10:40911`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// A self id: `n0` to `n65535`.
    pub id: String,
    /// Host name or address; an IPv6 address without its brackets.
    pub host: String,
    /// The port that its Raft listener has.
    pub port: u16,
}

impl Peer {
    /// The number in the id; its broker id as a follower is one more.
    pub fn number(&self) -> u32 {
        id_number(&self.id).expect("a peer's id is checked when it is read")
    }

    /// `host:port`, as it is dialled.
    pub fn addr(&self) -> String {
        join_host_port(&self.host, self.port)
    }
}

/// The number of a self id such as `n0`.
pub(super) fn id_number(id: &str) -> Option<u32> {
    let digits = id.strip_prefix('n')?;
    let plain = digits.bytes().all(|b| b.is_ascii_digit());
    // As `raft::SelfId` has it.
    digits.parse::<u16>().ok().filter(|_| plain).map(u32::from)
}

fn join_host_port(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// Why `host:port` was refused; completes the sentence "entry … ".
fn split_host_port(text: &str) -> Result<(String, u16), String> {
    let (host, port) = match text.rsplit_once(':') {
        Some(split) if !text.ends_with(']') => split,
        _ => return Err("has no port".into()),
    };
    let host = match host.strip_prefix('[') {
        Some(inner) => match inner.strip_suffix(']') {
            Some(address) if address.parse::<std::net::Ipv6Addr>().is_ok() => address,
            _ => return Err("has no IPv6 address between its brackets".into()),
        },
        None if host.contains(':') => {
            return Err("is an IPv6 address without brackets around it".into());
        }
        None => host,
    };
    if host.is_empty() {
        return Err("has no host".into());
    }
    if !host
        .chars()
        .all(|c| c.is_alphanumeric() || "-._:%".contains(c))
    {
        return Err("has a host that is neither a name nor an address".into());
    }
    match port.parse::<u16>() {
        Ok(port) if port > 0 => Ok((host.to_owned(), port)),
        _ => Err(format!(
            "has the port `{port}`, which is not from 1 to 65535"
        )),
    }
}

/// The parts between semicolons, with the place of each; empty ones are left out, as in Java.
fn split_list(text: &str) -> impl Iterator<Item = (usize, &str, Range<usize>)> {
    let mut start = 0;
    text.split(';')
        .map(move |part| {
            let at = start + (part.len() - part.trim_start().len());
            start += part.len() + 1;
            let part = part.trim();
            (part, at..at + part.len())
        })
        .filter(|(part, _)| !part.is_empty())
        .enumerate()
        .map(|(i, (part, span))| (i + 1, part, span))
}

/// Peers of a group. A repeated id, number or address is refused here too.
impl Value for Vec<Peer> {
    fn parse(text: &str) -> Result<Self, BadValue> {
        let mut peers: Vec<Peer> = Vec::new();
        for (i, part, span) in split_list(text) {
            let bad = |what: String| BadValue {
                message: format!("entry {i} `{part}` {what}"),
                span: Some(span.clone()),
            };
            let form = |what: String| bad(format!("{what}; want id-host:port;..."));
            let Some((id, address)) = part.split_once('-') else {
                return Err(form("has no id".into()));
            };
            if id_number(id).is_none() {
                return Err(form(format!(
                    "has the id `{id}`, which is not n and a number up to 65535"
                )));
            }
            let (host, port) = split_host_port(address).map_err(form)?;
            let peer = Peer {
                id: id.to_owned(),
                host,
                port,
            };
            for (j, other) in peers.iter().enumerate() {
                let j = j + 1;
                if other.id == peer.id {
                    return Err(bad(format!("has the same id as entry {j}")));
                }
                if other.number() == peer.number() {
                    return Err(bad(format!(
                        "has the same number as entry {j} `{}`, so both would be broker {}",
                        other.id,
                        peer.number() + 1
                    )));
                }
                if other.addr() == peer.addr() {
                    return Err(bad(format!(
                        "has the same address as entry {j} `{}`",
                        other.id
                    )));
                }
            }
            peers.push(peer);
        }
        Ok(peers)
    }

    fn show(&self) -> String {
        let entries: Vec<_> = self
            .iter()
            .map(|p| format!("{}-{}", p.id, p.addr()))
            .collect();
        entries.join(";")
    }
}

/// Addresses `host:port` with semicolons between them, as name servers are given.
impl Value for Vec<String> {
    fn parse(text: &str) -> Result<Self, BadValue> {
        let mut addresses = Vec::new();
        for (i, part, span) in split_list(text) {
            let (host, port) = split_host_port(part).map_err(|what| BadValue {
                message: format!("entry {i} `{part}` {what}; want host:port;..."),
                span: Some(span),
            })?;
            let address = join_host_port(&host, port);
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        Ok(addresses)
    }

    fn show(&self) -> String {
        self.join(";")
    }
}

const DELAY_UNITS: [(char, u64); 4] = [('d', 86_400), ('h', 3_600), ('m', 60), ('s', 1)];

/// Delays of the levels 1, 2, …: `1s 5s 2h`.
impl Value for Vec<Duration> {
    fn parse(text: &str) -> Result<Self, BadValue> {
        let mut levels = Vec::new();
        for word in text.split_ascii_whitespace() {
            let seconds = DELAY_UNITS.iter().find_map(|(unit, seconds)| {
                word.strip_suffix(*unit)?
                    .parse::<u32>()
                    .ok()
                    .map(|n| u64::from(n) * seconds)
            });
            let seconds = seconds.ok_or_else(|| {
                BadValue::want(
                    "a delay like 30s, 5m, 2h or 1d; want levels like 1s 5s 10s",
                    word,
                )
            })?;
            levels.push(Duration::from_secs(seconds));
        }
        if levels.is_empty() {
            return Err(BadValue {
                message: "no level is given".into(),
                span: None,
            });
        }
        Ok(levels)
    }

    fn show(&self) -> String {
        let word = |level: &Duration| {
            let seconds = level.as_secs();
            let (unit, size) = DELAY_UNITS
                .iter()
                .find(|(_, size)| seconds >= *size && seconds.is_multiple_of(*size))
                .unwrap_or(&('s', 1));
            format!("{}{unit}", seconds / size)
        };
        self.iter().map(word).collect::<Vec<_>>().join(" ")
    }
}
