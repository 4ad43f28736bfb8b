//! A container's `/etc/hosts`, which Docker keeps on the host and binds into the container (docs/spec/containers.md A.10).

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use weave_types::Cidr;

use weave_host::files::write_atomically;

use crate::{ContainerInfo, Error};

const LOCALHOST: [(&str, &str); 6] = [
    ("127.0.0.1", "localhost"),
    ("::1", "ip6-localhost ip6-loopback"),
    ("fe00::0", "ip6-localnet"),
    ("ff00::0", "ip6-mcastprefix"),
    ("ff02::1", "ip6-allnodes"),
    ("ff02::2", "ip6-allrouters"),
];

/// A hosts file to rewrite along with an attachment.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct HostsFile {
    /// The file on the host.
    pub path: PathBuf,
    /// `Hostname.Domainname` of the container.
    pub fqdn: String,
    /// Further names with their addresses.
    pub extra: Vec<(String, IpAddr)>,
}

impl HostsFile {
    /// Rewrites the file; returns what it said before.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn rewrite(&self, cidrs: &[Cidr]) -> Result<String, Error> {
        let addresses: Vec<_> = cidrs.iter().map(Cidr::addr).collect();
        rewrite(&self.path, &contents(&self.fqdn, &addresses, &self.extra))
    }
}

/// What the file is to say, as 2.8.1 writes it: the container's own names for its addresses, then `extra` names, then the
/// usual ones. `fqdn` is `Hostname.Domainname`; with an empty domain only the host name is written.
pub fn contents(fqdn: &str, addresses: &[IpAddr], extra: &[(String, IpAddr)]) -> String {
    let fqdn = fqdn.trim_end_matches('.');
    let names = match fqdn.split_once('.') {
        Some((host, _)) => format!("{fqdn} {host}"),
        None => fqdn.to_owned(),
    };
    let mut text = String::from("# created by Weave - BEGIN\n# container hostname\n");
    let line = |addr: &str, names: &str| format!("{addr:<15} {names}\n");
    text.extend(addresses.iter().map(|a| line(&a.to_string(), &names)));
    text.push_str("\n# static names added with --add-host\n");
    text.extend(extra.iter().map(|(name, a)| line(&a.to_string(), name)));
    text.push_str("\n# default localhost entries\n");
    text.extend(LOCALHOST.map(|(addr, names)| line(addr, names)));
    text.push_str("# created by Weave - END\n\n");
    text
}

/// `name:address` of `--add-host`, taken apart at the first colon.
///
/// # Errors
/// There is no name, or no address.
pub fn parse_extra(text: &str) -> Result<(String, IpAddr), Error> {
    let bad = || Error::Reference(format!("--add-host wants <name>:<ip>, not {text:?}"));
    let (name, addr) = text.split_once(':').ok_or_else(bad)?;
    let addr = addr.trim_start_matches('[').trim_end_matches(']').parse().map_err(|_| bad())?;
    if name.is_empty() || name.contains(char::is_whitespace) {
        return Err(bad());
    }
    Ok((name.to_owned(), addr))
}

/// The names of a container's `--add-host` options. For `host-gateway` Docker knows the address, and has written it into the container's
/// hosts file.
pub fn extra_names(info: &ContainerInfo) -> Vec<(String, IpAddr)> {
    let written = info.hosts_path.as_ref().and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
    let names = info.extra_hosts.iter().flat_map(|entry| match entry.strip_suffix(":host-gateway") {
        Some(name) => {
            addresses_of(&written, name).into_iter().map(|address| (name.to_owned(), address)).collect()
        }
        None => parse_extra(entry).into_iter().collect::<Vec<_>>(),
    });
    names.collect()
}

/// The addresses that a hosts file gives a name.
fn addresses_of(contents: &str, name: &str) -> Vec<IpAddr> {
    let lines = contents.lines().map(|line| line.split('#').next().unwrap_or_default().split_whitespace());
    let named = lines.filter(|line| line.clone().skip(1).any(|n| n == name));
    named.filter_map(|mut line| line.next()?.parse().ok()).collect()
}

/// Writes the file twice: into the file that is there, which the container sees, and then as a new one in its place, so
/// that what Docker writes later does not reach the container. Gives what the file said before.
///
/// # Errors
/// The file is not there or cannot be written; what can be is put back.
pub fn rewrite(path: &Path, contents: &str) -> Result<String, Error> {
    let failed = |what: &str, e: &io::Error| Error::Hosts(format!("cannot {what} {}: {e}", path.display()));
    let before = fs::read_to_string(path).map_err(|e| failed("read", &e))?;
    let meta = fs::metadata(path).map_err(|e| failed("read", &e))?;
    let write_in_place = |text: &str| {
        let mut file = OpenOptions::new().write(true).truncate(true).open(path)?;
        file.write_all(text.as_bytes())?;
        Ok::<_, io::Error>(())
    };
    let replaced = write_in_place(contents)
        .and_then(|()| write_atomically(path, contents.as_bytes(), meta.mode() & 0o7777))
        .and_then(|()| std::os::unix::fs::chown(path, Some(meta.uid()), Some(meta.gid())));
    match replaced {
        Ok(()) => Ok(before),
        Err(e) => {
            let _ = write_in_place(&before);
            Err(failed("write", &e))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[derive(serde::Deserialize)]
    struct Vectors {
        vectors: Vec<Case>,
    }

    #[derive(serde::Deserialize)]
    struct Case {
        fqdn: String,
        cidrs: Vec<String>,
        extra_hosts: Vec<String>,
        contents: String,
    }

    #[test]
    fn contents_of_the_original() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/containers/etc_hosts.json");
        let text = fs::read_to_string(path).expect("vectors");
        let vectors: Vectors = serde_json::from_str(&text).expect("vectors");
        assert!(vectors.vectors.len() >= 5);
        for case in vectors.vectors {
            let addresses: Vec<IpAddr> =
                case.cidrs.iter().map(|c| c.split('/').next().expect(c).parse().expect(c)).collect();
            // The original left out what is not `name:address`; we refuse it where it is typed.
            let extra: Vec<_> = case.extra_hosts.iter().filter_map(|e| parse_extra(e).ok()).collect();
            let ours = contents(&case.fqdn, &addresses, &extra);
            assert_eq!(ours, format!("{}\n", case.contents), "{}", case.fqdn);
        }
    }

    /// As `sh -c "echo '<contents>' > <file> && rm -f <file> && echo '<contents>' > <file>"` in a helper container of 2.8.1.
    #[test]
    fn file_of_a_container_of_the_originals_proxy() {
        let path =
            concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/containers/proxy_attach_trace.json");
        let text = fs::read_to_string(path).expect("vectors");
        let trace: serde_json::Value = serde_json::from_str(&text).expect("vectors");
        let info = ContainerInfo::from_json(trace["container_inspect"].to_string().as_bytes())
            .expect("a description");
        let created =
            trace["docker_calls"].as_array().and_then(|calls| calls.iter().find(|c| !c["body"].is_null()));
        let body = &created.expect("the helper container")["body"];
        let directory = info.hosts_path.as_ref().and_then(|path| path.parent()).expect("a hosts file");
        assert_eq!(body["HostConfig"]["Binds"][0], format!("{}:/container", directory.display()));
        let addresses =
            ["10.32.0.2", "10.2.1.1", "10.3.0.2"].map(|address| address.parse().expect("an address"));
        let ours = contents(&info.fqdn().expect("a domain"), &addresses, &extra_names(&info));
        let script = body["Cmd"][1].as_str().expect("a script");
        assert_eq!(script.split('\'').nth(1).map(|text| format!("{text}\n")), Some(ours));
    }

    #[test]
    fn options_for_extra_names() {
        let ok = |text: &str| parse_extra(text).expect(text);
        assert_eq!(ok("a:10.0.0.1"), ("a".to_owned(), "10.0.0.1".parse().expect("an address")));
        assert_eq!(ok("a:[fd00::1]"), ok("a:fd00::1"));
        for bad in ["", "a", "a:", ":10.0.0.1", "a:b", "a b:10.0.0.1", "a:10.0.0.1 b"] {
            assert!(parse_extra(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_of_a_container() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("hosts");
        fs::write(&path, "127.0.0.1 localhost\n172.18.0.1 up\n").expect("written");
        let hosts = ["up:host-gateway", "static:10.9.9.9", "other:host-gateway", "bad"];
        let info = ContainerInfo {
            hosts_path: Some(path),
            extra_hosts: hosts.map(str::to_owned).to_vec(),
            ..ContainerInfo::default()
        };
        let found: Vec<_> = extra_names(&info).into_iter().map(|(name, a)| format!("{name} {a}")).collect();
        assert_eq!(found, ["up 172.18.0.1", "static 10.9.9.9"]);
    }

    #[test]
    fn addresses_of_a_name() {
        let text = "# gw\n172.17.0.1\tgw\nfd00::1 x gw # old\nbad gw\n10.0.0.1 gw2\n10.0.0.2 #gw\n";
        let found: Vec<_> = addresses_of(text, "gw").iter().map(IpAddr::to_string).collect();
        assert_eq!(found, ["172.17.0.1", "fd00::1"]);
    }

    /// Who holds the old file open sees the new text, and nothing that is written to the path later.
    #[test]
    fn both_files_are_written() {
        use std::io::{Read, Seek};
        let dir = std::env::temp_dir().join(format!("weave-hosts-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("temporary directory");
        let path = dir.join("hosts");
        fs::write(&path, "old\n").expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o604)).expect("mode");
        let mut held = fs::File::open(&path).expect("open");
        assert_eq!(rewrite(&path, "new\n").expect("written"), "old\n");
        assert_eq!(fs::read_to_string(&path).expect("there"), "new\n");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o604);
        fs::write(&path, "docker\n").expect("written");
        let mut seen = String::new();
        held.rewind().and_then(|()| held.read_to_string(&mut seen)).expect("readable");
        assert_eq!(seen, "new\n");
        assert_eq!(fs::read_dir(&dir).expect("there").count(), 1, "nothing is left over");
        assert!(rewrite(&dir.join("none"), "x").is_err());
        fs::remove_dir_all(&dir).expect("removed");
    }
}
