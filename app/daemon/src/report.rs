//! What the node knows, as the report that people and scripts read.

use weave_api::Report;
use weave_api::report::Router;

use crate::config::Config;
use crate::seam::Node;

pub(crate) fn report(config: &Config, node: &Node) -> Report {
    Report {
        ready: true,
        version: crate::VERSION.to_owned(),
        router: Router {
            protocol: "weave".to_owned(),
            protocol_min_version: config.min_protocol,
            protocol_max_version: 2,
            encryption: config.password.is_some(),
            peer_discovery: config.discovery,
            name: node.name.to_string(),
            nick_name: node.nickname.clone(),
            port: config.port,
            targets: node.targets.clone(),
            trusted_subnets: config.trusted_subnets.iter().map(ToString::to_string).collect(),
            ..Router::default()
        },
        ..Report::default()
    }
}
