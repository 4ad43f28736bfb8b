//! Responses of `GET /containers/<container>/json` and `/exec/<id>/json`, with `--rewrite-inspect` (docs/spec/containers.md A.8).

use crate::Error;
use crate::json::Object;

/// The first interface of a container in our network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// As `02:42:ac:11:00:02`.
    pub mac: String,
    /// The first address, without prefix length.
    pub address: String,
    /// Prefix length of that address.
    pub prefix: u8,
}

/// Shows our interface in the description of a container.
///
/// # Errors
/// The description is not what Docker's API says.
pub fn rewrite(body: &[u8], interface: &Interface) -> Result<Vec<u8>, Error> {
    let mut container = Object::parse(body)?;
    show(&mut container, interface)?;
    Ok(container.to_bytes())
}

/// The same for the description of an exec, which contains the container in old versions of the API.
///
/// # Errors
/// The description is not what Docker's API says.
pub fn rewrite_exec(body: &[u8], interface: &Interface) -> Result<Vec<u8>, Error> {
    let mut exec = Object::parse(body)?;
    if exec.has("Container") {
        let mut container = exec.object("Container")?;
        show(&mut container, interface)?;
        exec.set_object("Container", &container);
    }
    Ok(exec.to_bytes())
}

fn show(container: &mut Object, interface: &Interface) -> Result<(), Error> {
    let mut settings = container.object("NetworkSettings")?;
    settings.set("MacAddress", &interface.mac);
    settings.set("IPAddress", &interface.address);
    settings.set("IPPrefixLen", &interface.prefix);
    container.set_object("NetworkSettings", &settings);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_interface_is_shown() {
        let interface =
            Interface { mac: "46:93:bf:38:b6:71".into(), address: "10.32.0.2".into(), prefix: 12 };
        let settings = r#""NetworkSettings":{"Bridge":"","IPAddress":"172.17.0.2","IPPrefixLen":16,"MacAddress":"02:42:ac:11:00:02"}"#;
        let ours = r#""NetworkSettings":{"Bridge":"","IPAddress":"10.32.0.2","IPPrefixLen":12,"MacAddress":"46:93:bf:38:b6:71"}"#;
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        let container = format!(r#"{{"Id":"c1",{settings}}}"#);
        let shown = rewrite(container.as_bytes(), &interface).map(text);
        assert_eq!(shown, Ok(format!(r#"{{"Id":"c1",{ours}}}"#)));
        let exec = format!(r#"{{"Container":{container},"ID":"e0"}}"#);
        let shown = rewrite_exec(exec.as_bytes(), &interface).map(text);
        assert_eq!(shown, Ok(format!(r#"{{"Container":{{"Id":"c1",{ours}}},"ID":"e0"}}"#)));
        // Docker 29 (API 1.52) shows addresses in `Networks` only.
        let networks = r#""Networks":{"bridge":{"IPAddress":"172.17.0.2"}}"#;
        let shown =
            rewrite(format!(r#"{{"NetworkSettings":{{{networks}}}}}"#).as_bytes(), &interface).map(text);
        let ours = r#""IPAddress":"10.32.0.2","IPPrefixLen":12,"MacAddress":"46:93:bf:38:b6:71""#;
        assert_eq!(shown, Ok(format!(r#"{{"NetworkSettings":{{{ours},{networks}}}}}"#)));
        assert_eq!(rewrite_exec(br#"{"ID":"e0"}"#, &interface).map(text), Ok(r#"{"ID":"e0"}"#.to_owned()));
    }
}
