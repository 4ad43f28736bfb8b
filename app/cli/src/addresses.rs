//! Address arguments of `attach`, `detach`, `expose` and `hide` (docs/spec/cli.md 2.1).

use weave_ipam::Subnet;
use weave_runtime::AddressRequest;
use weave_types::Cidr;

use crate::Failure;

/// What follows the arguments that look like addresses.
pub(crate) fn after(args: &[String]) -> &[String] {
    let count = args.iter().take_while(|a| looks_like_address(a)).count();
    args.get(count..).unwrap_or_default()
}

/// The particular addresses among the requests.
pub(crate) fn fixed(addresses: &[AddressRequest]) -> Vec<Cidr> {
    let fixed = addresses.iter().filter_map(|a| match a {
        AddressRequest::Fixed(cidr) => Some(*cidr),
        AddressRequest::Net(_) => None,
    });
    fixed.collect()
}

/// What a request for addresses waits for.
pub(crate) fn describe(addresses: &[AddressRequest]) -> String {
    addresses.iter().map(AddressRequest::describe).collect::<Vec<_>>().join(", ")
}

/// Takes the leading arguments that look like addresses; the rest follows. None means `net:default`.
pub(crate) fn leading(args: &[String]) -> Result<(Vec<AddressRequest>, &[String]), Failure> {
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
        addresses.push(AddressRequest::Net(None));
    }
    Ok((addresses, rest))
}

fn parse(text: &str) -> Result<AddressRequest, Failure> {
    match text.strip_prefix("net:") {
        Some("default") => Ok(AddressRequest::Net(None)),
        Some(net) => Ok(AddressRequest::Net(Some(net.parse::<Subnet>()?.cidr()))),
        None => {
            let cidr: Cidr = text.strip_prefix("ip:").unwrap_or(text).parse()?;
            check_host_address(&cidr)?;
            Ok(AddressRequest::Fixed(cidr))
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

/// Nobody can talk to a container with the broadcast address. With the address of the network itself they can, and 2.8.1 allows it.
pub(crate) fn check_host_address(cidr: &Cidr) -> Result<(), Failure> {
    if cidr.broadcast().is_some_and(|b| cidr.addr() == b) {
        return Err(Failure::new(
            1,
            format_args!("{cidr} is the network's broadcast address; choose another"),
        ));
    }
    Ok(())
}

/// One line of addresses without prefix lengths, in order.
pub(crate) fn plain(cidrs: &[String]) -> String {
    let ips: Vec<&str> =
        cidrs.iter().map(|cidr| cidr.split_once('/').map_or(cidr.as_str(), |(ip, _)| ip)).collect();
    ips.join(" ") + "\n"
}
