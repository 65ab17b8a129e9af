//! A network device: an address on it by rtnetlink(7), and who claims that address by ARP (RFC 826, RFC 5227).

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::netdevice::name_to_index;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, eth, getsockname, recv,
    send, sendto, socket_with,
};
use tokio::io::unix::AsyncFd;

use crate::config::VipPlace;

const MAC_LEN: usize = 6;
const BROADCAST: [u8; MAC_LEN] = [0xff; MAC_LEN];
const NOBODY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

/// The device of an address, and the address.
pub(super) struct Link {
    ip: Ipv4Addr,
    prefix: u8,
    index: u32,
    mac: [u8; MAC_LEN],
    netlink: OwnedFd,
    /// Sees all ARP packets that arrive on the device.
    arp: AsyncFd<OwnedFd>,
}

impl Link {
    /// Changes nothing yet. Needs a tokio runtime.
    ///
    /// # Errors
    /// When there is no such device, or this process may not watch it.
    pub(super) fn open(ip: Ipv4Addr, place: &VipPlace) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let arp = socket_with(
            AddressFamily::PACKET,
            SocketType::DGRAM,
            flags,
            Some(eth::ARP),
        )?;
        let index = name_to_index(&arp, &place.device)?;
        bind(&arp, &PacketAddr::of(index, [0; MAC_LEN]))?;
        let mac = PacketAddr::mac_of(&arp)?;
        // Protocol 0 is NETLINK_ROUTE.
        let flags = SocketFlags::CLOEXEC;
        let netlink = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        // SAFETY: an `OwnedFd` is open and the same until it is dropped.
        let arp = unsafe { AsyncFd::register(arp) }?;
        Ok(Self {
            ip,
            prefix: place.prefix,
            index,
            mac,
            netlink,
            arp,
        })
    }

    /// Puts the address on the device, or leaves it there, for `lifetime` in whole seconds: the kernel
    /// takes it away then, up to a second later, if it is not added again.
    ///
    /// # Errors
    /// When this process may not, or the device is gone.
    pub(super) fn add(&self, lifetime: Duration) -> io::Result<()> {
        let seconds = u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX);
        let message = address_message(NEW_ADDRESS, self.ip, self.prefix, self.index, seconds);
        Ok(self.request(&message)?)
    }

    /// Takes the address away, if it is there; says whether it was.
    ///
    /// # Errors
    /// When this process may not, or the device is gone.
    pub(super) fn remove(&self) -> io::Result<bool> {
        let message = address_message(REMOVE_ADDRESS, self.ip, self.prefix, self.index, 0);
        match self.request(&message) {
            Ok(()) => Ok(true),
            Err(Errno::ADDRNOTAVAIL) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn request(&self, message: &[u8]) -> Result<(), Errno> {
        send(&self.netlink, message, SendFlags::empty())?;
        // The kernel has answered before the call above returns.
        let mut answer = [0; 256];
        let (_, length) = recv(&self.netlink, &mut answer, RecvFlags::empty())?;
        parse_answer(&answer[..length])
    }

    /// Tells all on the link that the address is here.
    pub(super) fn announce(&self) -> io::Result<()> {
        self.send(&packet(self.mac, self.ip, self.ip))
    }

    /// Asks who else has the address. Its host's kernel answers even where the broker is stopped.
    pub(super) fn probe(&self) -> io::Result<()> {
        self.send(&packet(self.mac, NOBODY, self.ip))
    }

    fn send(&self, packet: &[u8]) -> io::Result<()> {
        let to = PacketAddr::of(self.index, BROADCAST);
        sendto(self.arp.get_ref(), packet, SendFlags::empty(), &to)?;
        Ok(())
    }

    /// Resolves when another host has claimed the address. Cancel safe.
    pub(super) async fn claimed(&self) -> io::Result<()> {
        loop {
            let mut guard = self.arp.readable().await?;
            let mut buffer = [0; 64];
            let read = |socket: &AsyncFd<OwnedFd>| {
                let (_, length) = recv(socket.get_ref(), &mut buffer, RecvFlags::empty())?;
                Ok(length)
            };
            if let Ok(length) = guard.try_io(read) {
                let length = length?.min(buffer.len());
                if is_claim(&buffer[..length], self.ip, self.mac) {
                    return Ok(());
                }
            }
        }
    }
}

/// `RTM_NEWADDR`, which with these flags also renews an address that is there.
const NEW_ADDRESS: (u16, u16) = (20, REQUEST | ACK | REPLACE | CREATE);
/// `RTM_DELADDR`.
const REMOVE_ADDRESS: (u16, u16) = (21, REQUEST | ACK);
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const REPLACE: u16 = 0x100;
const CREATE: u16 = 0x400;
const NLMSG_ERROR: u16 = 2;
/// Bytes of a `nlmsghdr`.
const HEADER: usize = 16;

/// A `nlmsghdr`, an `ifaddrmsg` and its attributes, all in the machine's byte order but addresses.
fn address_message(
    (kind, flags): (u16, u16),
    ip: Ipv4Addr,
    prefix: u8,
    index: u32,
    lifetime_s: u32,
) -> Vec<u8> {
    const AF_INET: u8 = 2;
    const IFA_ADDRESS: u16 = 1;
    const IFA_LOCAL: u16 = 2;
    const IFA_CACHEINFO: u16 = 6;
    let mut body = vec![AF_INET, prefix, 0, 0];
    body.extend(index.to_ne_bytes());
    let mut attribute = |kind: u16, value: &[u8]| {
        let length = u16::try_from(4 + value.len()).expect("a few bytes");
        body.extend(length.to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        body.extend(value);
    };
    attribute(IFA_LOCAL, &ip.octets());
    attribute(IFA_ADDRESS, &ip.octets());
    if lifetime_s > 0 {
        // Preferred, valid, and two times that the kernel fills in.
        let info = [lifetime_s, lifetime_s, 0, 0].map(u32::to_ne_bytes);
        attribute(IFA_CACHEINFO, info.as_flattened());
    }
    let length = u32::try_from(HEADER + body.len()).expect("a few bytes");
    let mut message = Vec::from(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    // One request at a time, so they need no numbers.
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// A `nlmsgerr`, whose code 0 says that all went well.
fn parse_answer(answer: &[u8]) -> Result<(), Errno> {
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok());
    let code = answer
        .get(HEADER..HEADER + 4)
        .and_then(|bytes| bytes.try_into().ok());
    match (kind.map(u16::from_ne_bytes), code.map(i32::from_ne_bytes)) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(code)) => Err(Errno::from_raw_os_error(code.wrapping_neg())),
        _ => Err(Errno::PROTO),
    }
}

/// Hardware type Ethernet, protocol IPv4, the lengths of both kinds of addresses.
const KIND: [u8; 6] = [0, 1, 8, 0, 6, 4];
const PACKET: usize = 28;

/// An ARP request of `sender`, who may be nobody, for `target`.
fn packet(mac: [u8; MAC_LEN], sender: Ipv4Addr, target: Ipv4Addr) -> [u8; PACKET] {
    let mut packet = [0; PACKET];
    packet[..6].copy_from_slice(&KIND);
    packet[7] = 1;
    packet[8..14].copy_from_slice(&mac);
    packet[14..18].copy_from_slice(&sender.octets());
    packet[24..].copy_from_slice(&target.octets());
    packet
}

/// Whether somebody else says that the address is his.
fn is_claim(packet: &[u8], ip: Ipv4Addr, own: [u8; MAC_LEN]) -> bool {
    packet.len() >= PACKET
        && packet[..6] == KIND
        && packet[8..14] != own
        && packet[14..18] == ip.octets()
}

/// A `sockaddr_ll`, see packet(7).
#[repr(C)]
struct PacketAddr {
    family: u16,
    protocol: u16,
    index: u32,
    hardware: u16,
    kind: u8,
    length: u8,
    addr: [u8; 8],
}

impl PacketAddr {
    fn of(index: u32, mac: [u8; MAC_LEN]) -> Self {
        const ETH_P_ARP: u16 = 0x0806;
        let mut addr = [0; 8];
        addr[..MAC_LEN].copy_from_slice(&mac);
        Self {
            family: AddressFamily::PACKET.as_raw(),
            protocol: ETH_P_ARP.to_be(),
            index,
            hardware: 0,
            kind: 0,
            length: 6,
            addr,
        }
    }

    /// The hardware address of the device that the socket is bound to.
    fn mac_of(socket: &OwnedFd) -> io::Result<[u8; MAC_LEN]> {
        let bound = getsockname(socket)?;
        let no_mac = || io::Error::other("the device has no Ethernet address");
        if bound.address_family() != AddressFamily::PACKET
            || (bound.addr_len() as usize) < size_of::<Self>() - 2
        {
            return Err(no_mac());
        }
        // SAFETY: the storage is larger than a `sockaddr_ll` and aligned for every kind of address, the
        // family says that it holds one, all of whose bytes that are read are initialised: the kernel
        // gives at least 6 of `addr`, and only these are looked at.
        let mac = unsafe {
            let addr = bound.as_ptr().cast::<Self>();
            if (*addr).length as usize != MAC_LEN {
                return Err(no_mac());
            }
            std::ptr::addr_of!((*addr).addr)
                .cast::<[u8; MAC_LEN]>()
                .read()
        };
        Ok(mac)
    }
}

// SAFETY: it is a `sockaddr_ll` by its layout, and lives for the call.
unsafe impl SocketAddrArg for PacketAddr {
    unsafe fn with_sockaddr<R>(
        &self,
        f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R,
    ) -> R {
        let length = SocketAddrLen::try_from(size_of::<Self>()).expect("20 bytes");
        f(std::ptr::from_ref(self).cast(), length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 100);
    const OWN: [u8; MAC_LEN] = [2, 0, 0, 0, 0, 1];
    const OTHER: [u8; MAC_LEN] = [2, 0, 0, 0, 0, 2];

    #[test]
    fn messages_are_as_ip_sends_them() {
        // `strace -e sendmsg ip addr replace 10.0.0.100/24 dev eth0 valid_lft 3 preferred_lft 3` on a
        // little-endian machine, device 7, without the broadcast address.
        let want: &[u8] = &[
            60, 0, 0, 0, 20, 0, 5, 5, 0, 0, 0, 0, 0, 0, 0, 0, // nlmsghdr
            2, 24, 0, 0, 7, 0, 0, 0, // ifaddrmsg
            8, 0, 2, 0, 10, 0, 0, 100, 8, 0, 1, 0, 10, 0, 0, 100, // IFA_LOCAL, IFA_ADDRESS
            20, 0, 6, 0, 3, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // IFA_CACHEINFO
        ];
        if cfg!(target_endian = "little") {
            assert_eq!(address_message(NEW_ADDRESS, IP, 24, 7, 3), want);
        }
        assert_eq!(address_message(REMOVE_ADDRESS, IP, 24, 7, 0).len(), 40);
    }

    #[test]
    fn answers_are_read_with_care() {
        let answer = |code: i32| {
            let mut answer = vec![36, 0, 0, 0];
            answer.extend(NLMSG_ERROR.to_ne_bytes());
            answer.extend([0; 10]);
            answer.extend(code.to_ne_bytes());
            answer
        };
        assert_eq!(parse_answer(&answer(0)), Ok(()));
        assert_eq!(parse_answer(&answer(-1)), Err(Errno::PERM));
        assert_eq!(parse_answer(&answer(0)[..19]), Err(Errno::PROTO));
        assert_eq!(parse_answer(&[]), Err(Errno::PROTO));
    }

    #[test]
    fn only_another_host_that_says_so_claims_the_address() {
        let claim = |mac, sender| is_claim(&packet(mac, sender, IP), IP, OWN);
        assert!(claim(OTHER, IP));
        assert!(!claim(OWN, IP), "its own announcement");
        assert!(!claim(OTHER, NOBODY), "a probe");
        assert!(!claim(OTHER, Ipv4Addr::new(10, 0, 0, 9)), "a question");
        assert!(!is_claim(&packet(OTHER, IP, IP)[..27], IP, OWN));
    }
}
