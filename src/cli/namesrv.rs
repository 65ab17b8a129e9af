//! The name servers that a command asks.

use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::admin::Admin;

/// How long one of several name servers may take to accept a connection.
const PATIENCE: Duration = Duration::from_secs(2);

/// `-n` of the commands.
#[derive(Debug, clap::Args)]
pub(super) struct Namesrv {
    /// The name servers, `host:port;host:port`: the first that can be reached is asked.
    #[arg(short = 'n', env = "NAMESRV_ADDR", default_value = "127.0.0.1:9876")]
    namesrv: String,
}

impl Namesrv {
    /// The first address that accepts a connection, or else the first of all.
    pub(super) async fn reachable(&self) -> &str {
        let addresses = self.namesrv.split(';').map(str::trim);
        let addresses: Vec<&str> = addresses.filter(|address| !address.is_empty()).collect();
        let first = addresses.first().copied().unwrap_or_default();
        // The failure of a single one is told best by the command that asks it.
        if addresses.len() > 1 {
            for address in addresses {
                let connected = timeout(PATIENCE, TcpStream::connect(address)).await;
                if matches!(connected, Ok(Ok(_))) {
                    return address;
                }
            }
        }
        first
    }

    pub(super) async fn admin(&self) -> Admin {
        Admin::new(self.reachable().await.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::testing::own_loopback;

    #[tokio::test]
    async fn the_first_that_can_be_reached_is_asked() {
        let closed = TcpListener::bind((own_loopback(), 0)).await.unwrap();
        let open = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dead = closed.local_addr().unwrap().to_string();
        let alive = open.local_addr().unwrap().to_string();
        drop(closed);
        for (list, asked) in [
            (format!("{dead};{alive}"), &alive),
            (format!("{alive}; {dead};"), &alive),
            (format!("{dead};{dead}"), &dead),
            (dead.clone(), &dead),
        ] {
            let namesrv = Namesrv { namesrv: list };
            assert_eq!(namesrv.reachable().await, asked);
        }
    }
}
