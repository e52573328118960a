// The parts of Apache ECharts that the report draws with.
import { CustomChart, LineChart } from "echarts/charts";
import { GridComponent, TooltipComponent } from "echarts/components";
import { init, use } from "echarts/core";
import { CanvasRenderer } from "echarts/renderers";

use([CustomChart, LineChart, GridComponent, TooltipComponent, CanvasRenderer]);
export { init };
