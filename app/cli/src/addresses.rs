//! Address arguments of `attach`, `detach`, `expose` and `hide`, and what the daemon makes of them (docs/spec/cli.md 2.1).
//!
//! | written | obtained by `attach` | looked up by `detach` |
//! | --- | --- | --- |
//! | `<ip>/<bits>`, `ip:<ip>/<bits>` | claimed, if the daemon runs | as it is |
//! | `net:<ip>/<bits>` | allocated in that subnet | what the container has there |
//! | `net:default`, nothing | allocated in the default subnet | what the container has there |

use weave_api::{Client, ClientError, client::encode};
use weave_ipam::Subnet;
use weave_types::Cidr;

use crate::Failure;
use crate::waiting::{self, Problem, Waiter};

/// One argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// This very address.
    Fixed(Cidr),
    /// Any of a subnet; `None`: of the default one.
    Net(Option<Subnet>),
}

/// What follows the arguments that look like addresses.
pub(crate) fn after(args: &[String]) -> &[String] {
    let count = args.iter().take_while(|a| looks_like_address(a)).count();
    args.get(count..).unwrap_or_default()
}

impl Address {
    /// The address, if it is a certain one.
    pub(crate) fn fixed(&self) -> Option<Cidr> {
        match self {
            Address::Fixed(cidr) => Some(*cidr),
            Address::Net(_) => None,
        }
    }
}

/// Takes the leading arguments that look like addresses; the rest follows. None means `net:default`.
pub(crate) fn leading(args: &[String]) -> Result<(Vec<Address>, &[String]), Failure> {
    let count = args.iter().take_while(|a| looks_like_address(a)).count();
    let (texts, rest) = args.split_at(count);
    let mut addresses = Vec::new();
    for text in texts {
        let address = parse(text)?;
        // Twice the same is once; but two of one subnet would be the same address, too.
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.is_empty() {
        addresses.push(Address::Net(None));
    }
    Ok((addresses, rest))
}

fn parse(text: &str) -> Result<Address, Failure> {
    match text.strip_prefix("net:") {
        Some("default") => Ok(Address::Net(None)),
        Some(net) => Ok(Address::Net(Some(net.parse()?))),
        None => {
            let cidr: Cidr = text.strip_prefix("ip:").unwrap_or(text).parse()?;
            check_host_address(&cidr)?;
            Ok(Address::Fixed(cidr))
        }
    }
}

/// The pattern of 2.8.1: four groups of one to three digits, a slash, one or two digits; `net:default`.
pub(crate) fn looks_like_address(text: &str) -> bool {
    if text == "net:default" {
        return true;
    }
    let text = text.strip_prefix("ip:").or_else(|| text.strip_prefix("net:")).unwrap_or(text);
    let Some((ip, bits)) = text.split_once('/') else { return false };
    let digits = |s: &str, max| (1..=max).contains(&s.len()) && s.bytes().all(|b| b.is_ascii_digit());
    ip.split('.').count() == 4 && ip.split('.').all(|g| digits(g, 3)) && digits(bits, 2)
}

/// A container cannot have the address of its network, nor the broadcast address.
pub(crate) fn check_host_address(cidr: &Cidr) -> Result<(), Failure> {
    let wrong = if cidr.prefix() < 31 && *cidr == cidr.network() {
        "is the address of the network itself; choose one inside it"
    } else if cidr.broadcast().is_some_and(|b| cidr.addr() == b) {
        "is the network's broadcast address; choose another"
    } else {
        return Ok(());
    };
    Err(Failure::new(1, format_args!("{cidr} {wrong}")))
}

/// One line of plain addresses, in order.
pub(crate) fn plain(cidrs: &[Cidr]) -> String {
    let ips: Vec<_> = cidrs.iter().map(|c| c.addr().to_string()).collect();
    ips.join(" ") + "\n"
}

/// The addresses of one container, as the daemon keeps them.
pub(crate) struct Book<'a> {
    client: &'a Client,
    container: &'a str,
    /// Its end releases what is obtained.
    check_alive: bool,
    /// What was obtained here and was not the container's before.
    new: Vec<Cidr>,
}

impl<'a> Book<'a> {
    /// Of `container`, which ends by itself if `check_alive`.
    pub(crate) fn of(client: &'a Client, container: &'a str, check_alive: bool) -> Book<'a> {
        Book { client, container, check_alive, new: Vec::new() }
    }

    /// Gets all addresses, in order. If one cannot be had, those obtained before are given back.
    pub(crate) fn obtain(&mut self, addresses: &[Address]) -> Result<Vec<Cidr>, Failure> {
        let before = match self.client.get("/ip") {
            Ok(json) => {
                let all = weave_api::Owned::from_json(&json).unwrap_or_default();
                all.of(self.container).filter_map(|a| a.parse().ok()).collect()
            }
            // Without allocation, or without a daemon, fixed addresses are taken as they are.
            Err(ClientError::NotFound | ClientError::Connect { .. }) => Vec::new(),
            Err(e) => return Err(failure(e)),
        };
        let result: Result<Vec<_>, _> = addresses.iter().map(|a| self.obtain_one(a, &before)).collect();
        if result.is_err() {
            self.give_back();
        }
        result
    }

    fn obtain_one(&mut self, address: &Address, before: &[Cidr]) -> Result<Cidr, Failure> {
        let cidr = match address {
            Address::Fixed(cidr) => match self.call("PUT", &self.path(Some(cidr)), &format!("{cidr}")) {
                Ok(_) => *cidr,
                Err(Problem::Client(ClientError::NotFound | ClientError::Connect { .. })) => {
                    return Ok(*cidr);
                }
                Err(problem) => return Err(problem.into()),
            },
            Address::Net(subnet) => {
                let path = self.path(subnet.map(Subnet::cidr).as_ref());
                let what = subnet.map_or("an address".to_owned(), |s| format!("an address of {s}"));
                let text = self.call("POST", &path, &what)?;
                if text == "cancelled" {
                    let why =
                        format!("the request for {what} was cancelled: is {} still running?", self.container);
                    return Err(Failure::new(1, why));
                }
                text.parse()?
            }
        };
        if !before.contains(&cidr) && !self.new.contains(&cidr) {
            self.new.push(cidr);
        }
        Ok(cidr)
    }

    /// A call that may wait. A person is shown what for; if it is broken off, the reason is given.
    fn call(&self, method: &'static str, path: &str, what: &str) -> Result<String, Problem> {
        let form: &[(&str, &str)] = if self.check_alive { &[("check-alive", "true")] } else { &[] };
        waiting::call(&Waiter::new(self.client, what), method, path, form)
    }

    /// Gives back what was obtained. Errors are not told: whoever calls this has one already.
    pub(crate) fn give_back(&mut self) {
        for cidr in std::mem::take(&mut self.new) {
            let _ = self.client.request("DELETE", &self.address_path(&cidr), &[], &[]);
        }
    }

    /// The addresses that the arguments stand for. Never waits.
    pub(crate) fn look_up(&self, addresses: &[Address]) -> Result<Vec<Cidr>, Failure> {
        let mut cidrs = Vec::new();
        for address in addresses {
            match address {
                Address::Fixed(cidr) => cidrs.push(*cidr),
                Address::Net(subnet) => {
                    let text =
                        self.client.get(&self.path(subnet.map(Subnet::cidr).as_ref())).map_err(failure)?;
                    for word in text.split_whitespace() {
                        cidrs.push(word.parse()?);
                    }
                }
            }
        }
        Ok(cidrs)
    }

    /// Releases addresses; those that are not kept for the container are left out.
    pub(crate) fn release(&self, cidrs: &[Cidr]) -> Result<(), Failure> {
        for cidr in cidrs {
            match self.client.request("DELETE", &self.address_path(cidr), &[], &[]) {
                // 400: it is not the container's; 404: nobody keeps books.
                Ok(answer) if matches!(answer.status, 200..=299 | 400 | 404) => {}
                Ok(answer) => return Err(Failure::new(1, answer.body.trim_end())),
                Err(ClientError::Connect { .. }) => return Ok(()),
                Err(e) => return Err(failure(e)),
            }
        }
        Ok(())
    }

    fn path(&self, cidr: Option<&Cidr>) -> String {
        let container = encode(self.container);
        cidr.map_or(format!("/ip/{container}"), |cidr| format!("/ip/{container}/{cidr}"))
    }

    fn address_path(&self, cidr: &Cidr) -> String {
        format!("/ip/{}/{}", encode(self.container), cidr.addr())
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Failure {
        match problem {
            Problem::Client(error) => failure(error),
            Problem::Interrupted(failure) => failure,
        }
    }
}

/// What a failed call about addresses means.
fn failure(error: ClientError) -> Failure {
    match error {
        ClientError::NotFound => Failure::new(1, "IP address allocation must be enabled to use 'net:'"),
        ClientError::Connect { .. } => {
            Failure::new(1, "weave is not running. Have you launched it? Try 'weave launch'.")
        }
        error => Failure::new(1, error),
    }
}
