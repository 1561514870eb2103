#include "launcher/verbs/node.h"

#include <fmt/format.h>

#include <memory>

#include "absl/time/time.h"
#include "launcher/run/progress_view.h"
#include "launcher/verbs/cluster_client.h"
#include "launcher/verbs/listing.h"

namespace moesaic {
namespace {

struct NodeFlags {
  ConnectionFlags cluster;
  std::string node;
  std::string deadline;
  std::string output;
};

Json NodeJson(const NodeStatus& node) {
  Json json;
  json["node"] = node.node();
  json["state"] = NodeStatus::State_Name(node.state());
  json["reason"] = node.reason().empty() ? Json() : Json(node.reason());
  json["host"] = node.host();
  json["slots"] = node.slots();
  json["cores"] = node.cores();
  json["job"] = node.job().empty() ? Json() : Json(node.job());
  json["generation"] = node.job().empty() ? Json() : Json(node.generation());
  json["blamed_failures"] = node.blamed_failures();
  json["cordoned_seconds"] = node.cordoned_seconds();
  json["lease_age_seconds"] = node.lease_age_seconds();
  return json;
}

std::string ReasonCell(const NodeStatus& node) {
  if (node.cordoned_seconds() <= 0) return node.reason();
  return fmt::format("{} ({} left)", node.reason(), DurationForPeople(node.cordoned_seconds()));
}

void Ls(const NodeFlags& flags, ClusterClient* client, VerbContext& context) {
  ListNodesReply reply;
  const absl::Status listed = client->Call([&](grpc::ClientContext* call) {
    return client->stub().ListNodes(call, ListNodesRequest(), &reply);
  });
  if (!listed.ok()) {
    Fail(listed, context);
    return;
  }
  Table table({"NODE", "STATE", "HOST", "SLOTS", "JOB", "GENERATION", "BLAMED", "REASON"});
  Json nodes = Json::array();
  for (const NodeStatus& node : reply.nodes()) {
    nodes.push_back(NodeJson(node));
    table.Add({node.node(), NodeStatus::State_Name(node.state()), node.host(),
               std::to_string(node.slots()), node.job(),
               node.job().empty() ? "" : std::to_string(node.generation()),
               std::to_string(node.blamed_failures()), ReasonCell(node)});
  }
  if (flags.output == "json") {
    context.out << JsonLine({{"nodes", nodes}}) << '\n' << std::flush;
  } else {
    table.Print(context.out);
  }
}

void Change(const NodeFlags& flags, ChangeNodeRequest::Change change, ClusterClient* client,
            VerbContext& context) {
  ChangeNodeRequest request;
  request.set_node(flags.node);
  request.set_change(change);
  absl::Duration deadline;
  if (absl::ParseDuration(flags.deadline, &deadline)) {
    request.set_deadline_seconds(absl::ToDoubleSeconds(deadline));
  }
  ChangeNodeReply reply;
  const absl::Status changed = client->Call([&](grpc::ClientContext* call) {
    return client->stub().ChangeNode(call, request, &reply);
  });
  if (!changed.ok()) Fail(changed, context);
}

using Work = std::function<void(const NodeFlags&, ClusterClient*)>;

// A sub-command of `node`.
CLI::App* AddNodeVerb(CLI::App* node, const char* name, const char* what,
                      const std::shared_ptr<NodeFlags>& flags, VerbContext& context, Work work) {
  CLI::App* verb = node->add_subcommand(name, what);
  AddConnectionFlags(verb, &flags->cluster);
  verb->callback([flags, &context, work = std::move(work)] {
    const auto client = ClusterClient::Open(flags->cluster, context);
    if (client.ok()) {
      work(*flags, client->get());
    } else {
      Fail(client.status(), context);
    }
  });
  return verb;
}

CLI::App* AddChange(CLI::App* node, const char* name, const char* what,
                    ChangeNodeRequest::Change change, VerbContext& context,
                    const std::shared_ptr<NodeFlags>& flags) {
  CLI::App* verb = AddNodeVerb(node, name, what, flags, context,
                               [change, &context](const NodeFlags& given, ClusterClient* client) {
                                 Change(given, change, client, context);
                               });
  verb->add_option("NODE", flags->node, "the node's name")->required();
  return verb;
}

}  // namespace

void RegisterNode(CLI::App& program, VerbContext& context) {
  CLI::App* node = program.add_subcommand("node", "the cluster's nodes: list them, set them aside");
  node->require_subcommand(1);
  const auto ls = std::make_shared<NodeFlags>();
  CLI::App* list = AddNodeVerb(
      node, "ls", "all nodes: state, job, and why one is spare or set aside", ls, context,
      [&context](const NodeFlags& given, ClusterClient* client) { Ls(given, client, context); });
  AddOutputFormat(list, &ls->output);
  const auto drain = std::make_shared<NodeFlags>();
  CLI::App* drained =
      AddChange(node, "drain", "move its ranks off at an agreed step, losing none, then cordon it",
                ChangeNodeRequest::DRAIN, context, drain);
  drained->add_option("--deadline", drain->deadline,
                      "Kill what is still there after so long, e.g. 60s (default: wait)")
      ->check(CheckDuration);
  AddChange(node, "cordon", "give it no new ranks; what runs there stays",
            ChangeNodeRequest::CORDON, context, std::make_shared<NodeFlags>());
  AddChange(node, "uncordon", "use it again", ChangeNodeRequest::UNCORDON, context,
            std::make_shared<NodeFlags>());
}

}  // namespace moesaic
