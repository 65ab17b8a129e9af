//! What the machine says about itself, for defaults that depend on it.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::PathBuf;

/// The name of this machine, or Java's `DEFAULT_BROKER` if it has none.
pub(super) fn host_name() -> String {
    match rustix::system::uname().nodename().to_str() {
        Ok(name) if !name.is_empty() => name.to_owned(),
        _ => "DEFAULT_BROKER".to_owned(),
    }
}

/// The address by which others on the network reach this machine: the source address that its
/// default route picks, or the loopback address without a network.
pub(super) fn local_address() -> IpAddr {
    // Connecting a datagram socket only chooses a route; nothing is sent. The target is a
    // documentation address (RFC 5737), which nobody has.
    let probe = || -> std::io::Result<IpAddr> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        Ok(socket.local_addr()?.ip())
    };
    match probe() {
        Ok(ip) if !ip.is_unspecified() => ip,
        _ => IpAddr::V4(Ipv4Addr::LOCALHOST),
    }
}

/// Java's `user.home`.
pub(super) fn user_home() -> PathBuf {
    std::env::home_dir()
        .filter(|home| !home.as_os_str().is_empty())
        .unwrap_or_else(|| "/".into())
}
