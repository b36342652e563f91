"""Every GraphQL document that we send, as constants: a test holds each of them to Railway's official schema.

A ``Document`` knows whether sending it twice does harm. Creating a service or a domain, and every deploy, are not idempotent
at Railway: whoever sends them looks at what is there before trying again.
"""

from dataclasses import dataclass

from app.platforms.budget import Kind

PAGE = 100


@dataclass(frozen=True)
class Document:
    """``name`` is also the operation's name within ``text``; ``repeat`` says that twice is as good as once."""

    name: str
    text: str
    repeat: bool = True
    kind: Kind = "call"


_DEPLOYMENT = """
fragment deploymentParts on Deployment {
  id status deploymentStopped createdAt meta canRollback instances { id status }
}
"""

LIST = Document(
    "ListServices",
    f"""query ListServices($project: String!, $environment: String!, $services: String, $instances: String) {{
  project(id: $project) {{
    services(first: {PAGE}, after: $services) {{
      edges {{ node {{ id name createdAt }} }}
      pageInfo {{ hasNextPage endCursor }}
    }}
  }}
  environment(id: $environment, projectId: $project) {{
    serviceInstances(first: {PAGE}, after: $instances) {{
      edges {{ node {{ serviceId latestDeployment {{ ...deploymentParts }} }} }}
      pageInfo {{ hasNextPage endCursor }}
    }}
  }}
}}
{_DEPLOYMENT}""",
)

LOOK = Document(
    "LookAtService",
    f"""query LookAtService($service: String!, $environment: String!) {{
  serviceInstance(serviceId: $service, environmentId: $environment) {{
    source {{ image }}
    latestDeployment {{ ...deploymentParts }}
    activeDeployments {{ ...deploymentParts }}
    domains {{ serviceDomains {{ id domain }} }}
  }}
}}
{_DEPLOYMENT}""",
    kind="poll",
)

DEPLOYMENT = Document(
    "LookAtDeployment",
    f"""query LookAtDeployment($id: String!) {{ deployment(id: $id) {{ ...deploymentParts }} }}
{_DEPLOYMENT}""",
    kind="poll",
)

VARIABLES = Document(
    "ReadVariables",
    """query ReadVariables($project: String!, $environment: String!, $service: String!) {
  variables(projectId: $project, environmentId: $environment, serviceId: $service, unrendered: true)
}""",
)

LOGS = Document(
    "ReadLogs",
    """query ReadLogs($deployment: String!, $limit: Int!) {
  deploymentLogs(deploymentId: $deployment, limit: $limit) { timestamp message severity }
}""",
)

EVENTS = Document(
    "ReadEvents",
    """query ReadEvents($deployment: String!) {
  deploymentEvents(id: $deployment, first: 50) {
    edges { node { step createdAt completedAt payload { error reason detail } } }
  }
}""",
)

CREATE_SERVICE = Document(
    "CreateService",
    "mutation CreateService($input: ServiceCreateInput!) { serviceCreate(input: $input) { id name } }",
    repeat=False,
)

SET_VARIABLES = Document(
    "SetVariables",
    "mutation SetVariables($input: VariableCollectionUpsertInput!) { variableCollectionUpsert(input: $input) }",
)

UPDATE = Document(
    "UpdateInstance",
    """mutation UpdateInstance($service: String!, $environment: String!, $input: ServiceInstanceUpdateInput!) {
  serviceInstanceUpdate(serviceId: $service, environmentId: $environment, input: $input)
}""",
)

LIMITS = Document(
    "SetLimits",
    "mutation SetLimits($input: ServiceInstanceLimitsUpdateInput!) { serviceInstanceLimitsUpdate(input: $input) }",
)

DEPLOY = Document(
    "Deploy",
    """mutation Deploy($service: String!, $environment: String!) {
  serviceInstanceDeployV2(serviceId: $service, environmentId: $environment)
}""",
    repeat=False,
)

CREATE_DOMAIN = Document(
    "CreateDomain",
    "mutation CreateDomain($input: ServiceDomainCreateInput!) { serviceDomainCreate(input: $input) { id domain } }",
    repeat=False,
)

ROLLBACK = Document("Rollback", "mutation Rollback($id: String!) { deploymentRollback(id: $id) }", repeat=False)
CANCEL = Document(
    "CancelDeployment", "mutation CancelDeployment($id: String!) { deploymentCancel(id: $id) }", kind="stop"
)
STOP = Document("StopDeployment", "mutation StopDeployment($id: String!) { deploymentStop(id: $id) }", kind="stop")
REMOVE = Document(
    "RemoveDeployment", "mutation RemoveDeployment($id: String!) { deploymentRemove(id: $id) }", kind="stop"
)

DELETE_SERVICE = Document(
    "DeleteService",
    "mutation DeleteService($id: String!) { serviceDelete(id: $id) }",
    kind="stop",
)

ALL: tuple[Document, ...] = tuple(v for v in list(vars().values()) if isinstance(v, Document))
