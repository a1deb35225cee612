//! Groups of listeners: which of them share a port, and which slot a connection meets.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};

use super::systemd::ActivatedSockets;
use super::*;
use crate::config::settings::{ListenAddress, SocketFileConfig, SteeringMode, UnixSocketName};
use crate::sys::tcp_socket;

fn any_port() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

fn socket_file() -> SocketFileConfig {
    SocketFileConfig { mode: 0o660, owner: None, group: None }
}

fn open_lent(
    public: &[ListenAddress],
    admin: &[SocketAddr],
    lent: &ActivatedSockets,
    slots: usize,
) -> Result<(ListenAddresses, Vec<SlotListeners>), ListenError> {
    let admin: Vec<_> = admin.iter().copied().map(ListenAddress::from).collect();
    open_listeners(ListenRequest { public, admin: &admin, socket_file: &socket_file() }, lent, slots)
}

fn open(
    public: &[SocketAddr],
    admin: &[SocketAddr],
    slots: usize,
) -> Result<(ListenAddresses, Vec<SlotListeners>), ListenError> {
    let public: Vec<_> = public.iter().copied().map(ListenAddress::from).collect();
    open_lent(&public, admin, &ActivatedSockets::default(), slots)
}

fn public(addresses: &ListenAddresses) -> Vec<SocketAddr> {
    addresses.public().iter().filter_map(ListenAddress::internet).collect()
}

fn admin(addresses: &ListenAddresses) -> Vec<SocketAddr> {
    addresses.admin().iter().filter_map(ListenAddress::internet).collect()
}

fn accept(listener: &Listener) -> io::Result<(TcpStream, SocketAddr)> {
    match &listener.socket {
        ListeningSocket::Tcp(socket) => socket.accept(),
        ListeningSocket::Unix(_) => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// Connects from each of these addresses; the slot in whose queue each was put.
fn slots_of(slots: &[SlotListeners], clients: impl Iterator<Item = u8>) -> Vec<usize> {
    let to = slots[0].public[0].internet_address().unwrap();
    let connect = |last: u8| {
        let from =
            if to.is_ipv6() { "[::1]:0".parse().unwrap() } else { SocketAddr::from(([127, 0, 0, last], 0)) };
        let _held: TcpStream = tcp_socket::connect_from(from, to).unwrap();
        slots.iter().position(|slot| accept(&slot.public[0]).is_ok()).unwrap()
    };
    clients.map(connect).collect()
}

#[test]
fn all_slots_share_the_port_and_a_second_fleet_is_refused() {
    let (addresses, slots) = open(&[any_port()], &[any_port()], 3).unwrap();
    assert_ne!(public(&addresses)[0].port(), 0);
    assert!(slots.iter().all(|slot| slot.public[0].internet_address().unwrap() == public(&addresses)[0]));
    let refused = open(&public(&addresses), &[any_port()], 1).unwrap_err();
    assert!(matches!(refused, ListenError::AddressInUse { .. }), "{refused}");
}

#[test]
fn a_foreign_listener_is_respected() {
    let foreign = TcpListener::bind(any_port()).unwrap();
    let address = foreign.local_addr().unwrap();
    assert!(matches!(open(&[any_port()], &[address], 1).unwrap_err(), ListenError::AddressInUse { .. }));
}

#[test]
fn an_address_keeps_its_slot_and_only_those_of_a_closed_slot_move() {
    let (_, slots) = open(&[any_port()], &[any_port()], 4).unwrap();
    let steer = |open: &[bool]| slots[0].steer(SteeringMode::ClientIp, open).unwrap();
    steer(&[true; 4]);
    let first = slots_of(&slots, 2..250);
    assert_eq!(slots_of(&slots, 2..250), first);
    assert_eq!(first.iter().collect::<BTreeSet<_>>().len(), 4);
    steer(&[true, false, true, true]);
    let meanwhile = slots_of(&slots, 2..250);
    assert!(!meanwhile.contains(&1));
    assert!(first.iter().zip(&meanwhile).all(|(before, after)| before == after || *before == 1));
    steer(&[true; 4]);
    assert_eq!(slots_of(&slots, 2..250), first);
}

#[test]
fn an_ipv6_address_keeps_its_slot_too() {
    let Ok((_, slots)) = open(&["[::1]:0".parse().unwrap()], &[any_port()], 8) else {
        return;
    };
    slots[0].steer(SteeringMode::ClientIp, &[true; 8]).unwrap();
    let met: BTreeSet<_> = slots_of(&slots, 0..20).into_iter().collect();
    assert_eq!(met.len(), 1);
}

#[test]
fn a_new_slot_gets_nothing_before_it_is_opened_and_the_last_one_leaves_the_others_their_places() {
    let (addresses, mut slots) = open(&[any_port()], &[any_port()], 2).unwrap();
    for mode in [SteeringMode::Kernel, SteeringMode::ClientIp] {
        slots[0].steer(mode, &[true, true, false]).unwrap();
        slots.push(addresses.open_slot().unwrap());
        assert!(!slots_of(&slots, 2..100).contains(&2));
        slots[0].steer(mode, &[true; 3]).unwrap();
        assert_eq!(slots_of(&slots, 2..100).iter().collect::<BTreeSet<_>>().len(), 3);
        slots[0].steer(mode, &[true, true, false]).unwrap();
        slots[2].close();
        slots.pop();
        slots[0].steer(mode, &[true, false]).unwrap();
        assert!(slots_of(&slots, 2..100).iter().all(|slot| *slot == 0));
    }
}

#[test]
fn an_activated_socket_is_one_queue_that_is_never_closed_or_steered() {
    let socket = TcpListener::bind(any_port()).unwrap();
    socket.set_nonblocking(true).unwrap();
    let address = socket.local_addr().unwrap();
    let lent = ActivatedSockets { public: vec![ListeningSocket::Tcp(socket)], admin: Vec::new() };
    let (addresses, slots) = open_lent(&[any_port().into()], &[any_port()], &lent, 2).unwrap();
    assert_eq!((public(&addresses)[0], slots[1].public[0].owner), (address, SocketOwner::Systemd));
    slots[0].steer(SteeringMode::Kernel, &[true, false]).unwrap();
    assert!(slots[0].steer(SteeringMode::ClientIp, &[true, true]).is_err());
    slots[0].close();
    let again = ListenAddresses::from_slot(&slots[1]).unwrap();
    assert_eq!((public(&again)[0], again.admin()), (address, addresses.admin()));
    let _held = TcpStream::connect(address).unwrap();
    assert!(accept(&slots[1].public[0]).is_ok());
    assert_eq!(again.open_slot().unwrap().public[0].owner, SocketOwner::Systemd);
}

fn loopback(last: u8) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, last], 0))
}

/// Connects from there to the same port of the same family; the slot in whose queue it was put, and its address there.
fn slot_and_peer(slots: &[SlotListeners], from: SocketAddr) -> (usize, SocketAddr) {
    let port = slots[0].public[0].internet_address().unwrap().port();
    let to = SocketAddr::new(
        if from.is_ipv6() { Ipv6Addr::LOCALHOST.into() } else { [127, 0, 0, 1].into() },
        port,
    );
    let _held = tcp_socket::connect_from(from, to).unwrap();
    let accepted = |slot: &SlotListeners| slot.public.iter().find_map(|listener| accept(listener).ok());
    let found = slots.iter().enumerate().find_map(|(nth, slot)| Some((nth, accepted(slot)?.1)));
    found.unwrap()
}

#[test]
fn every_address_of_ipv6_serves_both_families_and_the_next_slot_does_so_too() {
    let Ok((addresses, mut slots)) = open(&["[::]:0".parse().unwrap()], &[any_port()], 1) else {
        return;
    };
    assert!(slots[0].public[0].is_dual_stack() && !slots[0].admin[0].is_dual_stack());
    slots.push(addresses.open_slot().unwrap());
    slots.push(ListenAddresses::from_slot(&slots[0]).unwrap().open_slot().unwrap());
    let four: Vec<_> = (2..100).map(|last| slot_and_peer(&slots, loopback(last))).collect();
    let slots_met: BTreeSet<_> = four.iter().map(|(slot, _)| *slot).collect();
    assert_eq!(slots_met.len(), 3, "they are one group");
    let expected: IpAddr = [127, 0, 0, 2].into();
    assert_eq!(four[0].1.ip().to_canonical(), expected);
    assert!(slot_and_peer(&slots, "[::1]:0".parse().unwrap()).1.is_ipv6());
}

#[test]
fn both_families_of_one_port_may_be_named() {
    let Ok((free, held)) = open(&["[::]:0".parse().unwrap()], &[any_port()], 1) else {
        return;
    };
    let port = public(&free)[0].port();
    held[0].close();
    drop(held);
    for order in [["0.0.0.0", "[::]"], ["[::]", "0.0.0.0"], ["127.0.0.1", "[::]"], ["[::]", "127.0.0.1"]] {
        let named = order.map(|ip| format!("{ip}:{port}").parse().unwrap());
        let (_, slots) = open(&named, &[any_port()], 2).unwrap();
        assert!(slots.iter().flat_map(|slot| &slot.public).all(|listener| !listener.is_dual_stack()));
        assert!(
            slot_and_peer(&slots, loopback(2)).1.is_ipv4()
                && slot_and_peer(&slots, "[::1]:0".parse().unwrap()).1.is_ipv6()
        );
        slots.iter().for_each(SlotListeners::close);
    }
}

#[test]
fn an_ipv4_client_of_a_dual_stack_listener_keeps_its_slot() {
    let Ok((_, slots)) = open(&["[::]:0".parse().unwrap()], &[any_port()], 4) else {
        return;
    };
    slots[0].steer(SteeringMode::ClientIp, &[true; 4]).unwrap();
    let of = |last| slot_and_peer(&slots, loopback(last)).0;
    let first: Vec<_> = (2..100).map(of).collect();
    assert_eq!(first, (2..100).map(of).collect::<Vec<_>>());
    assert_eq!(first.iter().collect::<BTreeSet<_>>().len(), 4, "{first:?}");
    let six: BTreeSet<_> = (0..20).map(|_| slot_and_peer(&slots, "[::1]:0".parse().unwrap()).0).collect();
    assert_eq!(six.len(), 1);
}

#[test]
fn operators_may_have_several_addresses() {
    let (addresses, slots) = open(&[any_port()], &[any_port(), any_port()], 2).unwrap();
    assert_eq!((admin(&addresses).len(), slots[1].admin.len()), (2, 2));
    slots[0].steer(SteeringMode::Kernel, &[false, true]).unwrap();
    for (nth, address) in admin(&addresses).iter().enumerate() {
        let _held = TcpStream::connect(address).unwrap();
        assert!(accept(&slots[1].admin[nth]).is_ok());
    }
    assert_eq!(ListenAddresses::from_slot(&slots[0]).unwrap().admin(), addresses.admin());
    assert!(matches!(
        open(&[any_port()], &admin(&addresses)[1..], 1).unwrap_err(),
        ListenError::AddressInUse { .. }
    ));
}

#[test]
fn an_address_of_another_host_is_reported() {
    let elsewhere = "192.0.2.1:0".parse().unwrap();
    let message = open(&[any_port()], &[elsewhere], 1).unwrap_err().to_string();
    assert!(message.contains("admin.listen") && message.contains("no interface of this host"), "{message}");
}

#[test]
fn a_unix_socket_is_one_queue_of_all_slots_that_ends_with_the_fleet() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shop.sock");
    let name = ListenAddress::Unix(UnixSocketName::Path(path.clone()));
    let named = [any_port().into(), name.clone()];
    let open = || open_lent(&named, &[any_port()], &ActivatedSockets::default(), 2);
    let (addresses, mut slots) = open().unwrap();
    assert_eq!((addresses.public()[1].clone(), slots[0].public[1].owner), (name.clone(), SocketOwner::Fleet));
    assert!(open().unwrap_err().is_in_use());
    // Steered and closed are only the sockets that belong to one slot.
    slots[0].steer(SteeringMode::Kernel, &[true, false]).unwrap();
    slots[1].close();
    let again = ListenAddresses::from_slot(&slots[0]).unwrap();
    assert_eq!(again.public(), addresses.public());
    slots.push(again.open_slot().unwrap());
    let _client = std::os::unix::net::UnixStream::connect(&path).unwrap();
    let ListeningSocket::Unix(last) = &slots[2].public[1].socket else { panic!("it is a Unix socket") };
    assert!(last.accept().is_ok());
    assert_eq!(slots[0].queued_connections(), Some(0), "as far as it is known");
    addresses.close_shared();
    assert!(!path.exists() && std::os::unix::net::UnixStream::connect(&path).is_err());
    drop(slots);
    assert!(open().is_ok());
}

#[test]
fn no_socket_file_stays_of_what_could_not_be_opened() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shop.sock");
    let elsewhere: SocketAddr = "192.0.2.1:0".parse().unwrap();
    let named = [ListenAddress::Unix(UnixSocketName::Path(path.clone())), elsewhere.into()];
    assert!(open_lent(&named, &[any_port()], &ActivatedSockets::default(), 1).is_err());
    assert!(!path.exists());
}
