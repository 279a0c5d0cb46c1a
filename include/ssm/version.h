// SPDX-License-Identifier: Apache-2.0
#ifndef SSM_VERSION_H
#define SSM_VERSION_H

#define SSM_VERSION "0.1.0"

// The commit that libssm was built from ("unknown" outside a checkout). Static; any thread.
const char *ssm_version_commit(void);

#endif
