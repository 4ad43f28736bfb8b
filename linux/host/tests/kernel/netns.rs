use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use weave_host::{Error, NamespaceKey, NetNs, Netlink};

use crate::support::*;

/// A process that runs in a namespace until the end of the test.
struct Sleeper(Child);

impl Sleeper {
    fn in_namespace(ns: &NetNs) -> Sleeper {
        let start = || Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap();
        Sleeper(ns.run(start).unwrap())
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn namespaces_are_identified_by_inode() {
    host(|| {
        let here = NetNs::current().unwrap();
        let other = container();
        assert_ne!(here.id(), other.id());
        assert_eq!(other.try_clone().unwrap().id(), other.id());
        let process = Sleeper::in_namespace(&other);
        let pid = process.0.id();
        assert_eq!(NetNs::of_process(pid).unwrap().id(), other.id());
        let path = format!("/proc/{pid}/ns/net");
        assert_eq!(NetNs::at(Path::new(&path)).unwrap().id(), other.id());
        assert_eq!(NetNs::named(&path).unwrap().id(), other.id());
        let all = NetNs::all_of_processes().unwrap();
        assert_eq!(all.iter().filter(|(_, ns)| ns.id() == other.id()).count(), 1);

        assert_eq!(other.run(|| NetNs::current().unwrap().id()).unwrap(), other.id());
        assert_eq!(NetNs::current().unwrap().id(), here.id(), "only the helper thread entered it");
        assert_eq!(other.netlink().unwrap().links().unwrap().len(), 1);
    });
}

#[test]
fn namespace_is_opened_by_name() {
    host(|| {
        let name = format!("weave-test-{}", std::process::id());
        sh(&format!("ip netns add {name}"));
        let opened = NetNs::named(&name);
        sh(&format!("ip netns del {name}"));
        assert!(opened.is_ok(), "{opened:?}");
        let gone = NetNs::named(&name).unwrap_err();
        assert!(
            matches!(&gone, Error::NamespaceGone(t) if t.starts_with("network namespace weave-test-")),
            "{gone}"
        );
    });
}

#[test]
fn other_files_are_refused() {
    host(|| {
        let text = NetNs::of_process(u32::MAX).unwrap_err().to_string();
        assert_eq!(text, "process 4294967295 not found; it may have ended meanwhile");
        assert!(matches!(NetNs::at(Path::new("/nonexistent")), Err(Error::NamespaceGone(_))));
        assert!(matches!(NetNs::at(Path::new("/etc/passwd")), Err(Error::Argument(_))));
        assert!(matches!(NetNs::at(Path::new("/proc/self/ns/uts")), Err(Error::Argument(_))));
        for name in ["", ".", "..", "a\0b"] {
            assert!(matches!(NetNs::named(name), Err(Error::Argument(_))), "{name:?}");
        }
        let mut ended = Command::new("true").spawn().unwrap();
        eventually("an ended process not to be found", || {
            matches!(NetNs::of_process(ended.id()), Err(Error::NamespaceGone(_)))
        });
        ended.wait().unwrap();
    });
}

#[test]
fn a_namespace_is_found_by_its_key_while_it_exists() {
    host(|| {
        let (one, two) = (container(), container());
        let key = one.key().unwrap();
        assert_ne!(key, two.key().unwrap());
        assert_eq!(one.try_clone().unwrap().key(), Ok(key));
        // Neither a name nor a process leads to it, only this handle.
        assert!(NetNs::find(key, None).unwrap().is_none());
        let path = format!("/proc/self/fd/{}", one.as_raw_fd());
        let found = NetNs::find(key, Some(&path)).unwrap().unwrap();
        assert_eq!(found.id(), one.id());
        let mut process = one.run(|| Command::new("sleep").arg("60").spawn().unwrap()).unwrap();
        assert_eq!(NetNs::find(key, None).unwrap().map(|ns| ns.id()), Some(one.id()));
        let another = NamespaceKey { cookie: Some(u64::MAX), ..key };
        assert!(
            NetNs::find(another, None).unwrap().is_none(),
            "the number may belong to another namespace later"
        );
        process.kill().unwrap();
        process.wait().unwrap();
        let passed = NetNs::from_fd(one.as_fd().try_clone_to_owned().unwrap()).unwrap();
        assert_eq!(passed.id(), one.id());
        let other = std::fs::File::open("/dev/null").unwrap();
        assert!(matches!(NetNs::from_fd(other.into()), Err(Error::Argument(_))));
    });
}

#[test]
fn namespace_id_equals_that_of_links_into_it() {
    host(|| {
        let (one, two) = (container(), container());
        let mut netlink = Netlink::open().unwrap();
        assert_eq!(one.number(&mut netlink), Ok(None));
        let (a, b) = netlink.create_veth("a", "b", Some(1400)).unwrap();
        assert_eq!((a.mtu, b.mtu, a.peer, b.peer), (1400, 1400, Some(b.index), Some(a.index)));
        assert_eq!(a.peer_nsid, None);
        netlink.move_to(&b, &one).unwrap();
        let a = netlink.link("a").unwrap().unwrap();
        assert!(a.peer_nsid.is_some());
        assert_eq!(one.number(&mut netlink), Ok(a.peer_nsid));
        assert_ne!(two.number(&mut netlink), Ok(a.peer_nsid));
    });
}

#[test]
fn links_addresses_and_routes() {
    host(|| {
        let mut netlink = Netlink::open().unwrap();
        let (a, _) = netlink.create_veth("a", "b", None).unwrap();
        let error = netlink.create_veth("a", "c", None).unwrap_err();
        assert_eq!(error.to_string(), "creating veth pair a-c: file exists");
        assert_eq!(netlink.link("c"), Ok(None));
        assert_eq!(netlink.link("nothing"), Ok(None));
        assert!(matches!(netlink.link("bad name"), Err(Error::Argument(_))));

        let cidr = "10.2.1.1/24".parse().unwrap();
        netlink.add_address(&a, cidr).unwrap();
        assert!(sh("ip addr show dev a").contains("inet 10.2.1.1/24 brd 10.2.1.255 scope global a"));
        let error = netlink.add_address(&a, cidr).unwrap_err().to_string();
        assert!(error.starts_with("adding address 10.2.1.1/24 to a: file exists"), "{error}");
        let six = "fd00::1/64".parse().unwrap();
        netlink.add_address(&a, six).unwrap();
        assert_eq!(netlink.addresses_of(&a).unwrap(), [cidr, six]);
        netlink.set_up(&a, true).unwrap();
        assert_eq!(netlink.add_multicast_route(&a), Ok(true));
        assert_eq!(netlink.add_multicast_route(&a), Ok(false));
        assert!(sh("ip route").contains("224.0.0.0/4 dev a scope link"));
        let routes = netlink.routes().unwrap();
        let to: Vec<String> = routes.iter().map(|r| r.destination.to_string()).collect();
        assert_eq!(to, ["10.2.1.0/24", "224.0.0.0/4"]);
        assert!(routes.iter().all(|r| r.index == Some(a.index) && r.gateway.is_none()));
        assert_eq!(netlink.remove_multicast_route(&a), Ok(true));
        assert_eq!(netlink.remove_multicast_route(&a), Ok(false));

        netlink.rename(&netlink_down(&a), "renamed").unwrap();
        assert_eq!(netlink.link("renamed").unwrap().map(|l| l.index), Some(a.index));
        netlink.delete_link(&a).unwrap();
        assert_eq!(netlink.links().unwrap().len(), 1, "both ends were deleted");
        assert!(netlink.delete_link(&a).is_err());
    });
}

fn netlink_down(link: &weave_host::Link) -> weave_host::Link {
    Netlink::open().unwrap().set_up(link, false).unwrap();
    link.clone()
}

#[test]
fn long_dump_is_complete_during_changes() {
    host(|| {
        let mut netlink = Netlink::open().unwrap();
        for n in 0..150 {
            netlink.create_veth(&format!("a{n}"), &format!("b{n}"), None).unwrap();
        }
        let here = NetNs::current().unwrap();
        std::thread::scope(|scope| {
            let changes = scope.spawn(|| {
                let mut netlink = here.netlink().unwrap();
                for _ in 0..60 {
                    let (x, _) = netlink.create_veth("x", "y", None).unwrap();
                    netlink.delete_link(&x).unwrap();
                }
            });
            while !changes.is_finished() {
                let links = netlink.links().unwrap();
                let ours = links.iter().filter(|l| l.name.starts_with(['a', 'b'])).count();
                assert_eq!(ours, 300);
            }
        });
    });
}
