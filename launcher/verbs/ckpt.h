// moesaic ckpt: everything that can be done with a checkpoint folder, without a coordinator; and
// with one, what its checkpoint service does for its jobs (ckpt_cluster.h).
#pragma once

#include "launcher/verbs/verb.h"

namespace moesaic {

void RegisterCkpt(CLI::App& program, VerbContext& context);

// Its sub-commands, a file each.
void RegisterCkptList(CLI::App& ckpt, VerbContext& context);     // ls
void RegisterCkptShow(CLI::App& ckpt, VerbContext& context);     // show
void RegisterCkptCheck(CLI::App& ckpt, VerbContext& context);    // verify
void RegisterCkptDiff(CLI::App& ckpt, VerbContext& context);     // diff
void RegisterCkptKeep(CLI::App& ckpt, VerbContext& context);     // pin, unpin, rm
void RegisterCkptConvert(CLI::App& ckpt, VerbContext& context);  // import, export
void RegisterCkptUpcycle(CLI::App& ckpt, VerbContext& context);  // upcycle
void RegisterCkptReshard(CLI::App& ckpt, VerbContext& context);  // reshard-plan

}  // namespace moesaic
