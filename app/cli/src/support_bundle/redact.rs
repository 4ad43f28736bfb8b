//! Replaces secrets, and what identifies hosts, in the texts of a bundle. Pure: what is known about the host is an argument.
//!
//! | replaced | by |
//! | --- | --- |
//! | known secrets; values of `password`, `passwd`, `secret` and `token`; user and password of a URL | `[removed]` |
//! | IP addresses outside of the container network | `host-address-1`, `-2`, ... |
//! | Ethernet addresses that a manufacturer assigned, and those of this host's hardware | `hardware-address-1`, ... |
//! | host names that are known, and names in domains that are known | `host-name-1`, ... |
//!
//! The same value has the same replacement in all texts of a bundle, so that one can see which lines are about the same host. What only
//! looks like an address is replaced rather than kept.

mod secrets;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use weave_types::{Cidr, MacAddr};

use secrets::Marked;
pub(super) use secrets::marked_values;

const REMOVED: &str = "[removed]";
const HOST_ADDRESS: &str = "host-address-";
const HARDWARE_ADDRESS: &str = "hardware-address-";
const HOST_NAME: &str = "host-name-";
/// What a text that was redacted before contains; a secret that is a part of it does not count.
const REPLACEMENTS: [&str; 4] = [REMOVED, HOST_ADDRESS, HARDWARE_ADDRESS, HOST_NAME];
/// Shorter secrets are removed only where they are marked as such: otherwise they would be found in ordinary words.
const MIN_SECRET: usize = 4;

/// What is known about the host and its network.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    /// Passwords, wherever they occur.
    pub(super) secrets: BTreeSet<String>,
    /// Addresses of the container network, which stay.
    pub(super) networks: Vec<Cidr>,
    /// Names of peers, which have the form of Ethernet addresses and stay.
    pub(super) peers: BTreeSet<MacAddr>,
    /// Addresses of this host's interfaces that are hardware.
    pub(super) hardware: BTreeSet<MacAddr>,
    /// Names of hosts and domains, in any case.
    pub(super) names: BTreeSet<String>,
    /// Names that stay, such as nicknames.
    pub(super) nicknames: BTreeSet<String>,
}

/// How many different values were replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Replaced {
    pub(super) secrets: usize,
    pub(super) addresses: usize,
    pub(super) hardware: usize,
    pub(super) names: usize,
}

/// Redacts the texts of one bundle.
#[derive(Debug)]
pub(super) struct Redactor {
    known: Known,
    /// The longest first, so that no part of a secret stays.
    secrets: Vec<String>,
    removed: BTreeSet<String>,
    addresses: BTreeMap<IpAddr, usize>,
    hardware: BTreeMap<MacAddr, usize>,
    names: BTreeMap<String, usize>,
}

impl Redactor {
    pub(super) fn new(mut known: Known) -> Redactor {
        let mut written =
            known.secrets.iter().flat_map(|secret| secrets::spellings(secret)).collect::<Vec<_>>();
        written.retain(|secret| secret.len() >= MIN_SECRET);
        written.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        written.dedup();
        let lower = |names: &BTreeSet<String>| names.iter().map(|name| name.to_lowercase()).collect();
        (known.names, known.nicknames) = (lower(&known.names), lower(&known.nicknames));
        Redactor {
            known,
            secrets: written,
            removed: BTreeSet::new(),
            addresses: BTreeMap::new(),
            hardware: BTreeMap::new(),
            names: BTreeMap::new(),
        }
    }

    pub(super) fn replaced(&self) -> Replaced {
        Replaced {
            secrets: self.removed.len(),
            addresses: self.addresses.len(),
            hardware: self.hardware.len(),
            names: self.names.len(),
        }
    }

    /// The text with replacements.
    pub(super) fn redact(&mut self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut at = 0;
        let mut marked = secrets::next_marked_value(text, 0);
        while let Some(first) = text[at..].chars().next() {
            if let Some(value) = marked.filter(|value| value.start == at) {
                if value.start < value.end {
                    self.removed.insert(text[value.start..value.end].to_owned());
                    out.push_str(REMOVED);
                }
                at = self.end_with_secrets(text, value);
                marked = secrets::next_marked_value(text, at);
                continue;
            }
            let end = marked.map_or(text.len(), |value| value.start);
            let (length, replacement) = self.piece(text, at, end);
            match replacement {
                Some(replacement) => out.push_str(&replacement),
                None => out.push_str(&text[at..at + length.max(first.len_utf8())]),
            }
            at += length.max(first.len_utf8());
            // A known secret may reach into the value, or contain it.
            if let Some(value) = &mut marked
                && value.start < at
            {
                value.start = at;
                if value.end < at {
                    marked = secrets::next_marked_value(text, at);
                }
            }
        }
        out
    }

    /// The end of a marked value, or of a known secret that begins in it and is longer.
    fn end_with_secrets(&self, text: &str, value: Marked) -> usize {
        let starts = text[value.start..value.end].char_indices().map(|(offset, _)| value.start + offset);
        let ends = starts.filter_map(|at| Some(at + self.secret(&text[at..])?.len()));
        ends.fold(value.end, usize::max)
    }

    /// A known secret at the beginning of the text.
    fn secret(&self, rest: &str) -> Option<&String> {
        self.secrets.iter().find(|secret| rest.starts_with(secret.as_str()))
    }

    /// The length of what begins at `at`, and what replaces it. Only a known secret may reach beyond `end`, where a marked value begins.
    fn piece(&mut self, text: &str, at: usize, end: usize) -> (usize, Option<String>) {
        let rest = &text[at..end];
        if let Some(own) = REPLACEMENTS.iter().find(|own| rest.starts_with(**own)) {
            let number = prefix(&rest[own.len()..], |c| c.is_ascii_digit());
            return (own.len() + number.len(), None);
        }
        if let Some(secret) = self.secret(&text[at..]).cloned() {
            let length = secret.len();
            self.removed.insert(secret);
            return (length, Some(REMOVED.to_owned()));
        }
        let follows_word = |text: &str| text.chars().next_back().is_some_and(is_word);
        if !follows_word(&text[..at])
            && !follows_word(text[..at].trim_end_matches(['.', '-']))
            && let Some(found) = self.name(rest)
        {
            return found;
        }
        let is_inside_number = text[..at].ends_with(|c: char| c.is_ascii_hexdigit());
        if !is_inside_number && let Some(found) = self.colons(rest) {
            return found;
        }
        self.dots(rest).unwrap_or((0, None))
    }

    /// A known host name, or a name in a known domain, at the beginning of the text.
    fn name(&mut self, rest: &str) -> Option<(usize, Option<String>)> {
        if self.known.names.is_empty() {
            return None;
        }
        let word = prefix(rest, |c| is_word(c) || matches!(c, '-' | '.')).trim_end_matches(['.', '-']);
        let lower = word.to_lowercase();
        if word.is_empty() || self.known.nicknames.contains(&lower) {
            return None;
        }
        let mut suffixes = std::iter::successors(Some(lower.as_str()), |name| Some(name.split_once('.')?.1));
        suffixes.any(|name| self.known.names.contains(name)).then(|| {
            let next = self.names.len() + 1;
            let number = self.names.entry(lower.clone()).or_insert(next);
            (word.len(), Some(format!("{HOST_NAME}{number}")))
        })
    }

    /// An IPv6 or Ethernet address at the beginning of the text.
    fn colons(&mut self, rest: &str) -> Option<(usize, Option<String>)> {
        let mut run = prefix(rest, |c| c.is_ascii_hexdigit() || matches!(c, ':' | '.'));
        // Such as `de::Error`, of which `de::E` would be an address.
        if rest[run.len()..].starts_with(is_word) && !run.contains(|c: char| c.is_ascii_digit()) {
            return None;
        }
        run = run.trim_end_matches('.');
        if !run.ends_with("::") {
            run = run.trim_end_matches(':');
        }
        let colons = run.matches(':').count();
        if colons < 2 {
            return None;
        }
        if let Ok(mac) = run.to_lowercase().parse::<MacAddr>() {
            return Some((run.len(), self.mac(mac)));
        }
        match run.parse::<Ipv6Addr>() {
            Ok(address) => Some((run.len(), self.address(address.to_canonical()))),
            // Longer hardware addresses, and anything else that might be an address with something attached to it.
            Err(_) if colons >= 5 || run.contains("::") => {
                self.removed.insert(run.to_owned());
                Some((run.len(), Some(REMOVED.to_owned())))
            }
            Err(_) => None,
        }
    }

    /// A number with dots at the beginning of the text: an IPv4 address, or something else.
    fn dots(&mut self, rest: &str) -> Option<(usize, Option<String>)> {
        let run = prefix(rest, |c| c.is_ascii_digit() || c == '.').trim_end_matches('.');
        if !run.starts_with(|c: char| c.is_ascii_digit()) {
            return None;
        }
        if let Ok(address) = run.parse::<IpAddr>() {
            return Some((run.len(), self.address(address)));
        }
        let has_address = run.split("..").any(|part| part.split('.').count() > 3);
        let replacement = has_address.then(|| {
            self.removed.insert(run.to_owned());
            REMOVED.to_owned()
        });
        Some((run.len(), replacement))
    }

    fn address(&mut self, address: IpAddr) -> Option<String> {
        let identifies_nobody = address.is_loopback()
            || address.is_unspecified()
            || address.is_multicast()
            || matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
        if identifies_nobody || self.known.networks.iter().any(|network| network.contains(address)) {
            return None;
        }
        let next = self.addresses.len() + 1;
        Some(format!("{HOST_ADDRESS}{}", self.addresses.entry(address).or_insert(next)))
    }

    fn mac(&mut self, mac: MacAddr) -> Option<String> {
        let is_local = mac.0[0] & 2 != 0;
        let stays = mac == MacAddr::ZERO || mac.is_group() || self.known.peers.contains(&mac);
        if stays || is_local && !self.known.hardware.contains(&mac) {
            return None;
        }
        let next = self.hardware.len() + 1;
        Some(format!("{HARDWARE_ADDRESS}{}", self.hardware.entry(mac).or_insert(next)))
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn prefix(text: &str, accept: impl Fn(char) -> bool) -> &str {
    text.find(|c| !accept(c)).map_or(text, |end| &text[..end])
}

#[cfg(test)]
mod tests;
